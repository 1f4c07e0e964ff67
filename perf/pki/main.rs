//! `perf-pki DIR`: makes the certificates every server under measurement shares.
//!
//! Ten hostnames, each with a P-256 and an RSA-2048 server certificate and a client CA of its own that has signed one
//! client certificate. Server certificates are presented as one leaf without intermediates, so a handshake carries the
//! same bytes on every server. A client chain is one leaf directly under its CA: two P-256 verifications a handshake
//! (the CA's signature on the leaf, the client's signature over the handshake).
#![forbid(unsafe_code)]

#[path = "../common/mod.rs"]
mod common;

use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, RsaKeySize, date_time_ymd,
};

use common::{Failure, HOSTS, host_name, pem_path, read_identity};

/// Makes the PKI of the measurements.
#[derive(Parser)]
struct Options {
    /// Where the files go; made when missing.
    dir: PathBuf,
}

fn main() -> Result<(), Failure> {
    let options = Options::parse();
    let server_ca = authority("Perf Server CA")?;
    fs::create_dir_all(&options.dir)?;
    fs::write(options.dir.join("server-ca.pem"), server_ca.pem())?;
    for host in 0..HOSTS {
        write_host(&options.dir, host, &server_ca)?;
    }
    Ok(())
}

/// Writes the five PEM files of one hostname, and reads the identities back as the servers will.
fn write_host(dir: &Path, host: usize, server_ca: &Authority) -> Result<(), Failure> {
    let name = host_name(host);
    fs::create_dir_all(dir.join(format!("host{host}")))?;
    let write = |file: &str, text: &str| fs::write(pem_path(dir, host, file), text);

    let p256 = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    write("p256.pem", &leaf(&name, ExtendedKeyUsagePurpose::ServerAuth, &p256, server_ca)?)?;
    let rsa = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048)?;
    write("rsa.pem", &leaf(&name, ExtendedKeyUsagePurpose::ServerAuth, &rsa, server_ca)?)?;

    let client_ca = authority(&format!("Client CA of {name}"))?;
    write("client-ca.pem", &client_ca.pem())?;
    let client = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    write("client.pem", &leaf("client", ExtendedKeyUsagePurpose::ClientAuth, &client, &client_ca)?)?;

    for file in ["p256.pem", "rsa.pem", "client.pem"] {
        read_identity(&pem_path(dir, host, file))?;
    }
    Ok(())
}

/// A CA and the key it signs with.
type Authority = CertifiedIssuer<'static, KeyPair>;

/// Makes a self-signed P-256 CA.
fn authority(common_name: &str) -> Result<Authority, Failure> {
    let mut params = params(common_name, Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(CertifiedIssuer::self_signed(params, KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?)?)
}

/// Makes a leaf for `key` under `issuer`; certificate and private key as one PEM text.
fn leaf(
    common_name: &str,
    usage: ExtendedKeyUsagePurpose,
    key: &KeyPair,
    issuer: &Authority,
) -> Result<String, Failure> {
    let mut params = params(common_name, vec![common_name.to_owned()])?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    Ok(params.signed_by(key, issuer)?.pem() + &key.serialize_pem())
}

/// What all certificates have in common: dates that hold for years, and a subject of one common name.
fn params(common_name: &str, names: Vec<String>) -> Result<CertificateParams, Failure> {
    let mut params = CertificateParams::new(names)?;
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2045, 1, 1);
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    Ok(params)
}
