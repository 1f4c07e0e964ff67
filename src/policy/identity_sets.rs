//! The sets of headers in which a client's identity can be told to an origin.

/// Which sets of identity headers a hostname's origin gets.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct IdentitySets {
    /// `Client-Cert` and `Client-Cert-Chain` (RFC 9440).
    pub client_cert: bool,
    /// `X-Client-Cert-Subject`, `-Issuer`, `-Serial`, `-Fingerprint`, `-San`, `-Not-After`.
    pub x_client_cert: bool,
    /// `X-Forwarded-Client-Cert`, as Envoy writes it.
    pub xfcc: bool,
    /// `Cf-Client-Cert-Der-Base64`, `Cf-Client-Cert-Sha256` and `Cf-Cert-*`, as Cloudflare writes them.
    pub cf: bool,
    /// `ssl-client-verify`, `ssl-client-subject-dn`, `ssl-client-issuer-dn` and `ssl-client-cert`, as ingress-nginx.
    pub ingress: bool,
}

impl IdentitySets {
    /// The sets as they are written in a file.
    pub const NAMES: [&'static str; 5] = ["client-cert", "x-client-cert", "xfcc", "cf", "ingress"];

    /// Adds the set of this name. `false`: there is none of this name.
    pub fn insert(&mut self, name: &str) -> bool {
        let set = match name {
            "client-cert" => &mut self.client_cert,
            "x-client-cert" => &mut self.x_client_cert,
            "xfcc" => &mut self.xfcc,
            "cf" => &mut self.cf,
            "ingress" => &mut self.ingress,
            _ => return false,
        };
        *set = true;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::IdentitySets;

    #[test]
    fn every_name_is_a_set_of_its_own() {
        let mut all = IdentitySets::default();
        for name in IdentitySets::NAMES {
            let mut one = IdentitySets::default();
            assert!(one.insert(name) && one != IdentitySets::default(), "{name}");
            let before = all;
            assert!(all.insert(name) && all != before, "{name}");
        }
        assert!(!all.insert("Client-Cert"));
    }
}
