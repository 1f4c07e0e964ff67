//! The authority of a request (`Host`, or the one in an absolute-form target).

use std::net::Ipv6Addr;

use crate::registry::name::normalise_sni;

/// The longest port: 65535.
const PORT_BYTES_MAX: usize = 5;

/// The host of an authority in the form records are found by (`registry::name::normalise_sni`): port cut, lower case, one
/// trailing dot cut.
///
/// `None` if the host is no DNS name: an IP address, as clients send it that know no name, belongs to no record but the
/// default one.
pub fn normalise<'a>(authority: &str, out: &'a mut [u8; 255]) -> Option<&'a str> {
    normalise_sni(host(authority)?.as_bytes(), out)
}

/// The host of an authority, in its brackets if it is an IPv6 address. `None` if it is no authority.
///
/// Only what a host is in practice (RFC 9110 section 7.2, RFC 3986 section 3.2.2): letters, digits, `-` `_` `.`, or an
/// IPv6 address in brackets. User information and percent-encoding have no place in a `Host`, and a zone or a future
/// kind of address is nothing a client can mean for us.
pub fn host(authority: &str) -> Option<&str> {
    let host_end = match authority.strip_prefix('[') {
        Some(rest) => {
            let (address, _) = rest.split_once(']')?;
            address.parse::<Ipv6Addr>().ok()?;
            address.len() + 2
        }
        None => {
            let end = authority.find(':').unwrap_or(authority.len());
            let is_host = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
            if end == 0 || !authority.bytes().take(end).all(is_host) {
                return None;
            }
            end
        }
    };
    let (host, port) = authority.split_at_checked(host_end)?;
    // RFC 3986 section 3.2.3 allows an empty port after the colon.
    let is_port = match port.strip_prefix(':') {
        Some("") => true,
        Some(digits) => {
            digits.len() <= PORT_BYTES_MAX
                && digits.bytes().all(|byte| byte.is_ascii_digit())
                && digits.parse::<u16>().is_ok()
        }
        None => port.is_empty(),
    };
    is_port.then_some(host)
}

/// Whether two hosts are one: case and one trailing dot do not count.
pub fn is_same_host(a: &str, b: &str) -> bool {
    let cut_root = |host| str::strip_suffix(host, ".").unwrap_or(host);
    cut_root(a).eq_ignore_ascii_case(cut_root(b))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn authorities_are_normalised() {
        for (authority, expected_host, expected) in [
            ("pay.acme.test", Some("pay.acme.test"), Some("pay.acme.test")),
            ("PAY.Acme.test.:8443", Some("PAY.Acme.test."), Some("pay.acme.test")),
            ("pay.acme.test:", Some("pay.acme.test"), Some("pay.acme.test")),
            ("pay.acme.test:65535", Some("pay.acme.test"), Some("pay.acme.test")),
            ("my_app.test", Some("my_app.test"), Some("my_app.test")),
            ("192.0.2.1:443", Some("192.0.2.1"), None),
            ("[2001:db8::1]", Some("[2001:db8::1]"), None),
            ("[2001:db8::1]:443", Some("[2001:db8::1]"), None),
            ("[::ffff:192.0.2.1]:443", Some("[::ffff:192.0.2.1]"), None),
            ("a..b", Some("a..b"), None),
            ("-a.test", Some("-a.test"), None),
            ("", None, None),
            (":443", None, None),
            ("a:65536", None, None),
            ("a:000443", None, None),
            ("a:+44", None, None),
            ("a:44a", None, None),
            ("a:1:2", None, None),
            ("2001:db8::1", None, None),
            ("[2001:db8::1", None, None),
            ("[2001:db8::1]443", None, None),
            ("[::1%25eth0]", None, None),
            ("[v1.x]", None, None),
            ("[]", None, None),
            ("user@a", None, None),
            ("a b", None, None),
            ("a,b", None, None),
            ("a/b", None, None),
            ("a%2eb", None, None),
            ("a\\b", None, None),
            ("b\u{fc}cher.test", None, None),
            ("*.acme.test", None, None),
        ] {
            assert_eq!(host(authority), expected_host, "{authority}");
            assert_eq!(normalise(authority, &mut [0; 255]), expected, "{authority}");
        }
    }

    proptest! {
        /// No spelling of a server name leads anywhere else than the name itself.
        #[test]
        fn an_authority_is_found_as_its_server_name(name in "[a-zA-Z0-9_-]{1,8}(\\.[a-zA-Z0-9-]{1,8}){0,3}\\.?", port in "(:[0-9]{0,4})?") {
            let mut ours = [0; 255];
            let mut theirs = [0; 255];
            prop_assert_eq!(
                normalise(&format!("{name}{port}"), &mut ours),
                normalise_sni(name.as_bytes(), &mut theirs)
            );
        }

        #[test]
        fn any_text_is_survived(authority in "\\PC{0,64}|[\\[\\]:.0-9a-f]{0,40}") {
            let _ = normalise(&authority, &mut [0; 255]);
        }
    }
}
