//! What systemd is told (sd_notify(3)). Without a NOTIFY_SOCKET nothing happens; a socket that fails changes nothing.

use sd_notify::NotifyState;

/// Serving, after start or reload.
pub fn ready(hostnames: usize, generation: u64) {
    let status = format!("serving {hostnames} hostnames, generation {generation}");
    let _ = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(&status)]);
}

/// A reload began. The time is what `Type=notify-reload` waits for.
pub fn reloading() {
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        let _ = sd_notify::notify(&[NotifyState::Reloading, now, NotifyState::Status("reloading")]);
    }
}

/// Draining; the process ends soon.
pub fn stopping() {
    let _ = sd_notify::notify(&[NotifyState::Stopping, NotifyState::Status("draining")]);
}

/// Another process is the main one from now on. With NotifyAccess=main systemd hears this one no more, and that one only from
/// now on: nothing either says out of turn counts.
pub fn main_process(pid: u32) {
    let _ = sd_notify::notify(&[NotifyState::MainPid(pid)]);
}
