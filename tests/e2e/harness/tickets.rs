//! A client's session store that gives away its tickets: those of one hostname are offered at any other, as often as
//! the test likes. rustls' own store keys sessions by server name, which is what an attacker would not do.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, MutexGuard};

use rustls::NamedGroup;
use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::pki_types::ServerName;

/// The store: what it holds is offered at every server name, the oldest first. A TLS 1.3 ticket is offered once, as rustls
/// hands it over for good; a TLS 1.2 session until another takes its place.
#[derive(Default)]
pub struct TicketBook(Mutex<Book>);

#[derive(Default)]
struct Book {
    /// Nothing is offered while this is set; tickets are still collected.
    withheld: bool,
    tls12: Option<Tls12ClientSessionValue>,
    tls13: VecDeque<Tls13ClientSessionValue>,
    group: Option<NamedGroup>,
}

impl TicketBook {
    /// How many sessions are held.
    pub fn count(&self) -> usize {
        let book = self.book();
        book.tls13.len() + usize::from(book.tls12.is_some())
    }

    /// Forgets all of them.
    pub fn clear(&self) {
        let mut book = self.book();
        book.tls12 = None;
        book.tls13.clear();
    }

    /// Offers nothing from now on, or offers again.
    pub fn withhold(&self, withheld: bool) {
        self.book().withheld = withheld;
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().expect("no test panics while holding this")
    }
}

impl fmt::Debug for TicketBook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TicketBook(..)")
    }
}

impl ClientSessionStore for TicketBook {
    fn set_kx_hint(&self, _: ServerName<'static>, group: NamedGroup) {
        self.book().group = Some(group);
    }

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        self.book().group
    }

    fn set_tls12_session(&self, _: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.book().tls12 = Some(value);
    }

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        let book = self.book();
        book.tls12.clone().filter(|_| !book.withheld)
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {
        self.book().tls12 = None;
    }

    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.book().tls13.push_back(value);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let mut book = self.book();
        if book.withheld { None } else { book.tls13.pop_front() }
    }
}
