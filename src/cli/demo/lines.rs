//! The lines to paste.

use std::net::SocketAddr;
use std::path::Path;

use super::{ACME, Customer, GLOBEX};

/// What the demo prints when everything serves.
pub fn instructions(dir: &Path, address: SocketAddr, admin: Option<SocketAddr>) -> String {
    let mut text = String::new();
    let mut line = |line: &str| {
        text.push_str(line);
        text.push('\n');
    };
    line("Hostward serves two customers who trust different CAs.\n");
    line(&format!("  keys and certificates   {}", dir.display()));
    line(&format!("  configuration           {}", dir.join("hostward.toml").display()));
    line(&format!("  clients                 {address}"));
    if let Some(admin) = admin {
        line(&format!("  metrics                 curl http://{admin}/metrics"));
    }
    line("\nAcme's certificate at Acme: let in (200)");
    line(&curl(dir, address, ACME, Some(ACME)));
    line("\nThe same, asking for Globex inside Acme's connection: misdirected (421)");
    line(&format!("{} -i -H 'Host: {}'", curl(dir, address, ACME, Some(ACME)), GLOBEX.hostname));
    line("\nThe same with a forged identity: let in, and the page shows the true one");
    line(&format!("{} -H 'X-Client-Cert-Subject: CN=admin'", curl(dir, address, ACME, Some(ACME))));
    line("\nNo certificate at Acme: refused (certificate required)");
    line(&curl(dir, address, ACME, None));
    line("\nAcme's certificate at Globex: refused (unknown CA)");
    line(&curl(dir, address, GLOBEX, Some(ACME)));
    line("\nGlobex's certificate at Globex: let in (200)");
    line(&curl(dir, address, GLOBEX, Some(GLOBEX)));
    line("\nAcme's session ticket: taken at Acme, resumed at Acme (Reused), refused at Globex (certificate required)");
    line(&ticket(dir, address, ACME, Some("-sess_out")));
    line(&ticket(dir, address, ACME, None));
    line(&ticket(dir, address, GLOBEX, None));
    line("\nEvery refusal leaves a line here. Ctrl-C ends the demo.");
    text
}

fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-".contains(&b));
    if plain { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

fn curl(dir: &Path, address: SocketAddr, at: Customer, with: Option<Customer>) -> String {
    let (hostname, port) = (at.hostname, address.port());
    let mut line = format!(
        "  curl --resolve {hostname}:{port}:{} --cacert {}",
        address.ip(),
        quoted(&dir.join("provider-ca.pem"))
    );
    if let Some(customer) = with {
        let file = |extension: &str| quoted(&dir.join(format!("{}-client.{extension}", customer.prefix)));
        line.push_str(&format!(" --cert {} --key {}", file("pem"), file("key")));
    }
    line.push_str(&format!(" https://{hostname}:{port}/"));
    line
}

/// `sess_out`: with Acme's certificate, writing the ticket; otherwise without any, offering it.
fn ticket(dir: &Path, address: SocketAddr, at: Customer, sess_out: Option<&str>) -> String {
    let hostname = at.hostname;
    let session = quoted(&dir.join("acme.session"));
    let request = format!(r"printf 'GET / HTTP/1.1\r\nHost: {hostname}\r\nConnection: close\r\n\r\n'");
    let common = format!(
        "  {request} | openssl s_client -connect {address} -servername {hostname} -CAfile {} -ign_eof",
        quoted(&dir.join("provider-ca.pem"))
    );
    match sess_out {
        Some(option) => {
            let file = |extension: &str| quoted(&dir.join(format!("{}-client.{extension}", ACME.prefix)));
            format!("{common} -cert {} -key {} {option} {session}", file("pem"), file("key"))
        }
        None => format!("{common} -sess_in {session}"),
    }
}

#[cfg(test)]
mod tests {
    use super::instructions;
    use std::path::Path;

    #[test]
    fn paths_with_spaces_can_be_pasted() {
        let text = instructions(Path::new("/tmp/it's here"), "127.0.0.1:4433".parse().unwrap(), None);
        assert!(text.contains(r"--cacert '/tmp/it'\''s here/provider-ca.pem'"), "{text}");
        assert!(text.contains("--resolve pay.acme.test:4433:127.0.0.1"), "{text}");
    }
}
