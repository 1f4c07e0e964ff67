//! The envelope: what a ticket says, sealed and opened. Pure but for the salt.

use ring::aead::{Aad, Nonce};

use crate::policy::{Refusal, Verdict};
use crate::tls::scope::{Path, PathElement, Standing};

use super::keyring::{KEY_ID_BYTES, Keyring, SALT_BYTES};

/// The first byte of every ticket; a later format has another.
const FORMAT: u8 = 1;

const HEADER_BYTES: usize = 1 + KEY_ID_BYTES + SALT_BYTES;

/// Most certificates a path has: the chain limit and the anchor.
const ELEMENTS_MAX: usize = 8;

/// What a ticket says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sealed {
    pub record_id: [u8; 16],
    pub trust_digest: [u8; 32],
    pub standing: Standing,
    /// The client's leaf certificate, DER; empty without one. Rules look at it before the ticket opens.
    pub leaf: Vec<u8>,
    /// rustls' own session state.
    pub plaintext: Vec<u8>,
}

impl Sealed {
    /// Seals under the current key. `None` when randomness or encryption fails: no ticket then.
    pub fn seal(&self, keyring: &Keyring) -> Option<Vec<u8>> {
        let (id, salt, key) = keyring.seal_key()?;
        let mut out = Vec::with_capacity(HEADER_BYTES + self.plaintext.len() + 256);
        out.push(FORMAT);
        out.extend_from_slice(&id);
        out.extend_from_slice(&salt);
        let mut body = Vec::with_capacity(self.plaintext.len() + 256);
        self.write(&mut body)?;
        // The key is this ticket's own, so one fixed nonce is used once.
        let nonce = Nonce::assume_unique_for_key([0; 12]);
        let tag = key.seal_in_place_separate_tag(nonce, Aad::from(&out), &mut body).ok()?;
        out.extend_from_slice(&body);
        out.extend_from_slice(tag.as_ref());
        Some(out)
    }

    /// Opens a ticket. `None`: another format, an unknown key, or not what was sealed.
    pub fn open(ticket: &[u8], keyring: &Keyring) -> Option<Self> {
        let (header, sealed) = ticket.split_at_checked(HEADER_BYTES)?;
        let (&format, names) = header.split_first()?;
        if format != FORMAT {
            return None;
        }
        let (id, salt) = names.split_at(KEY_ID_BYTES);
        let key = keyring.open_key(id, salt)?;
        let mut body = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key([0; 12]);
        let body = key.open_in_place(nonce, Aad::from(header), &mut body).ok()?;
        Self::read(body)
    }

    fn write(&self, out: &mut Vec<u8>) -> Option<()> {
        out.extend_from_slice(&self.record_id);
        out.extend_from_slice(&self.trust_digest);
        let (verdict, reason) = match self.standing.verdict {
            Verdict::None => (0, 0),
            Verdict::Success => (1, 0),
            Verdict::Failed(reason) => (2, reason as u8),
        };
        out.extend_from_slice(&[verdict, reason]);
        out.extend_from_slice(&self.standing.authenticated_unix_s.to_be_bytes());
        match &self.standing.path {
            None => out.push(0),
            Some(path) => {
                out.push(1);
                out.extend_from_slice(&path.anchor);
                out.extend_from_slice(&path.not_after_unix_s.to_be_bytes());
                out.push(u8::try_from(path.elements.len()).ok().filter(|n| usize::from(*n) <= ELEMENTS_MAX)?);
                for element in &path.elements {
                    out.extend_from_slice(&element.issuer_spki_sha256);
                    out.push(u8::try_from(element.serial.len()).ok()?);
                    out.extend_from_slice(&element.serial);
                }
            }
        }
        // The leaf stands inside rustls' plaintext as it was received: its place is enough. Should a later rustls encode
        // chains otherwise, the leaf goes into the envelope itself.
        match find(&self.plaintext, &self.leaf) {
            Some(place) => {
                out.push(1);
                out.extend_from_slice(&u32::try_from(place).ok()?.to_be_bytes());
                out.extend_from_slice(&u32::try_from(self.leaf.len()).ok()?.to_be_bytes());
            }
            None => {
                out.push(0);
                out.extend_from_slice(&u32::try_from(self.leaf.len()).ok()?.to_be_bytes());
                out.extend_from_slice(&self.leaf);
            }
        }
        out.extend_from_slice(&self.plaintext);
        Some(())
    }

    fn read(body: &[u8]) -> Option<Self> {
        let mut reader = Reader(body);
        let record_id = reader.array()?;
        let trust_digest = reader.array()?;
        let verdict = match reader.array::<2>()? {
            [0, 0] => Verdict::None,
            [1, 0] => Verdict::Success,
            [2, reason] => Verdict::Failed(Refusal::from_u8(reason)?),
            _ => return None,
        };
        let authenticated_unix_s = u64::from_be_bytes(reader.array()?);
        let path = match reader.byte()? {
            0 => None,
            1 => {
                let anchor = reader.array()?;
                let not_after_unix_s = i64::from_be_bytes(reader.array()?);
                let count = usize::from(reader.byte()?);
                if count > ELEMENTS_MAX {
                    return None;
                }
                let mut elements = Vec::with_capacity(count);
                for _ in 0..count {
                    let issuer_spki_sha256 = reader.array()?;
                    let len = usize::from(reader.byte()?);
                    elements.push(PathElement { issuer_spki_sha256, serial: reader.take(len)?.to_vec() });
                }
                Some(Path { anchor, elements, not_after_unix_s })
            }
            _ => return None,
        };
        let leaf = match reader.byte()? {
            0 => {
                let len = u32::from_be_bytes(reader.array()?) as usize;
                let leaf = reader.take(len)?.to_vec();
                return Some(Self {
                    record_id,
                    trust_digest,
                    standing: Standing { verdict, path, authenticated_unix_s },
                    leaf,
                    plaintext: reader.0.to_vec(),
                });
            }
            1 => {
                let place = u32::from_be_bytes(reader.array()?) as usize;
                let len = u32::from_be_bytes(reader.array()?) as usize;
                reader.0.get(place..place.checked_add(len)?)?.to_vec()
            }
            _ => return None,
        };
        let standing = Standing { verdict, path, authenticated_unix_s };
        Some(Self { record_id, trust_digest, standing, leaf, plaintext: reader.0.to_vec() })
    }
}

/// Where `leaf` stands in `plaintext`. Its last bytes, a signature, are looked for and the rest compared: preparing a search
/// for a needle of half a kilobyte costs more than finding it.
fn find(plaintext: &[u8], leaf: &[u8]) -> Option<usize> {
    const TAIL: usize = 24;
    let tail = leaf.get(leaf.len().checked_sub(TAIL)?..)?;
    let place = memchr::memmem::find(plaintext, tail)?.checked_sub(leaf.len() - TAIL)?;
    (plaintext.get(place..place + leaf.len())? == leaf).then_some(place)
}

/// Takes fields off the front; `None` when too little is left.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (field, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(field)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn byte(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sealed() -> impl Strategy<Value = Sealed> {
        let verdict = prop_oneof![
            Just(Verdict::None),
            Just(Verdict::Success),
            (0..Refusal::ALL.len()).prop_map(|i| Verdict::Failed(Refusal::ALL[i]))
        ];
        let element = (any::<[u8; 32]>(), proptest::collection::vec(any::<u8>(), 0..21))
            .prop_map(|(issuer_spki_sha256, serial)| PathElement { issuer_spki_sha256, serial });
        let path = (any::<[u8; 32]>(), proptest::collection::vec(element, 0..6), any::<i64>())
            .prop_map(|(anchor, elements, not_after_unix_s)| Path { anchor, elements, not_after_unix_s });
        let bytes = proptest::collection::vec(any::<u8>(), 0..600);
        (
            any::<[u8; 16]>(),
            any::<[u8; 32]>(),
            verdict,
            any::<u64>(),
            proptest::option::of(path),
            bytes.clone(),
            bytes,
            any::<bool>(),
        )
            .prop_map(
                |(record_id, trust_digest, verdict, authenticated_unix_s, path, leaf, mut plaintext, inside)| {
                    if inside {
                        plaintext.extend_from_slice(&leaf);
                    }
                    let standing = Standing { verdict, path, authenticated_unix_s };
                    Sealed { record_id, trust_digest, standing, leaf, plaintext }
                },
            )
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens_and_nothing_else_does(value in sealed(), flip in any::<(usize, u8)>()) {
            let keyring = Keyring::generate(0).unwrap();
            let ticket = value.seal(&keyring).unwrap();
            prop_assert_eq!(Sealed::open(&ticket, &keyring), Some(value));
            prop_assert_eq!(Sealed::open(&ticket, &Keyring::generate(0).unwrap()), None);
            let mut broken = ticket.clone();
            let at = flip.0 % broken.len();
            broken[at] ^= flip.1 | 1;
            prop_assert_eq!(Sealed::open(&broken, &keyring), None);
            prop_assert_eq!(Sealed::open(&ticket[..at], &keyring), None);
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let keyring = Keyring::generate(0).unwrap();
            prop_assert_eq!(Sealed::open(&bytes, &keyring), None);
            let _ = Sealed::read(&bytes);
        }
    }
}
