//! The cryptography: which library, which groups and suites, in which order.

use rustls::crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs, ring};
use rustls::{CipherSuite, SupportedCipherSuite};

/// Which library does the cryptography of TLS.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Provider {
    /// aws-lc-rs: X25519MLKEM768, AVX-512 AES-GCM, fast RSA.
    #[default]
    AwsLcRs,
    /// ring: smaller, no post-quantum group.
    Ring,
}

impl Provider {
    /// The name in the configuration file.
    pub fn name(self) -> &'static str {
        match self {
            Self::AwsLcRs => "aws-lc-rs",
            Self::Ring => "ring",
        }
    }

    /// Everything it can do.
    pub fn full(self) -> CryptoProvider {
        match self {
            Self::AwsLcRs => aws_lc_rs::default_provider(),
            Self::Ring => ring::default_provider(),
        }
    }

    fn all_groups(self) -> &'static [&'static dyn SupportedKxGroup] {
        match self {
            Self::AwsLcRs => aws_lc_rs::ALL_KX_GROUPS,
            Self::Ring => ring::ALL_KX_GROUPS,
        }
    }

    /// The groups used when the configuration names none, in order of preference.
    pub fn default_groups(self) -> &'static [&'static str] {
        match self {
            Self::AwsLcRs => &["X25519MLKEM768", "X25519", "secp256r1", "secp384r1"],
            Self::Ring => &["X25519", "secp256r1", "secp384r1"],
        }
    }

    /// Builds the provider with the given groups and suites, in order of preference; empty lists mean the defaults.
    ///
    /// # Errors
    ///
    /// The first name this provider does not have.
    pub fn build(self, groups: &[String], suites: &[String]) -> Result<CryptoProvider, String> {
        let mut provider = self.full();
        let groups: Vec<&str> = if groups.is_empty() {
            self.default_groups().to_vec()
        } else {
            groups.iter().map(String::as_str).collect()
        };
        provider.kx_groups = groups.iter().map(|name| self.group(name)).collect::<Result<_, _>>()?;
        if suites.is_empty() {
            provider.cipher_suites.sort_by_key(|suite| preference(suite.suite()));
        } else {
            let all = provider.cipher_suites;
            provider.cipher_suites = suites
                .iter()
                .map(|name| {
                    let found = all.iter().find(|suite| suite_name(suite) == *name);
                    found.copied().ok_or_else(|| format!("provider {} has no cipher suite {name}", self.name()))
                })
                .collect::<Result<_, _>>()?;
        }
        Ok(provider)
    }

    fn group(self, name: &str) -> Result<&'static dyn SupportedKxGroup, String> {
        let found = self.all_groups().iter().find(|group| group_name(**group) == name);
        found.copied().ok_or_else(|| format!("provider {} has no group {name}", self.name()))
    }

    /// The suite names a configuration may use.
    pub fn suite_names(self) -> Vec<String> {
        self.full().cipher_suites.iter().map(suite_name).collect()
    }

    /// The group names a configuration may use.
    pub fn group_names(self) -> Vec<String> {
        self.all_groups().iter().map(|group| group_name(*group)).collect()
    }
}

/// AES-128-GCM first: it is the cheapest with hardware AES on both sides, and strong enough for every client there is.
fn preference(suite: CipherSuite) -> u8 {
    match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => 0,
        CipherSuite::TLS13_AES_256_GCM_SHA384 => 1,
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => 2,
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => 3,
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 | CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => 4,
        _ => 5,
    }
}

/// The suite's name as IANA registers it: `TLS_AES_128_GCM_SHA256`, `TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256`. rustls spells
/// those of TLS 1.3 with a prefix of its own.
pub(super) fn suite_name(suite: &SupportedCipherSuite) -> String {
    format!("{:?}", suite.suite()).replace("TLS13_", "TLS_")
}

/// The group's name as the configuration spells it: `X25519MLKEM768`, `X25519`, `secp256r1`, `secp384r1`.
fn group_name(group: &dyn SupportedKxGroup) -> String {
    format!("{:?}", group.name())
}

#[cfg(test)]
mod tests {
    use super::Provider;

    #[test]
    fn both_providers_build_with_their_defaults_and_prefer_aes_128() {
        for provider in [Provider::AwsLcRs, Provider::Ring] {
            let built = provider.build(&[], &[]).unwrap();
            assert_eq!(super::suite_name(&built.cipher_suites[0]), "TLS_AES_128_GCM_SHA256");
            let groups: Vec<_> = built.kx_groups.iter().map(|group| super::group_name(*group)).collect();
            assert_eq!(groups, provider.default_groups());
        }
    }

    #[test]
    fn names_it_does_not_have_are_named() {
        let error = Provider::Ring.build(&["X25519MLKEM768".into()], &[]).unwrap_err();
        assert!(error.contains("ring") && error.contains("X25519MLKEM768"), "{error}");
        let error = Provider::AwsLcRs.build(&[], &["TLS_NULL".into()]).unwrap_err();
        assert!(error.contains("TLS_NULL"), "{error}");
    }
}
