//! The keys tickets are sealed under: one current, and those that can still be honoured. Shared by all workers.

use std::fmt;

use ring::aead::{self, LessSafeKey, UnboundKey};
use ring::hkdf;
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

/// The system's random source failed.
#[derive(Clone, Copy, Debug)]
pub struct NoRandom;

impl fmt::Display for NoRandom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the system's random number generator failed")
    }
}

impl std::error::Error for NoRandom {}

/// Names a key inside a ticket.
pub(super) const KEY_ID_BYTES: usize = 8;

/// Each ticket has its own key, derived under a random salt of this size, so that no number of tickets under one ticket
/// key comes near AES-GCM's limit on random nonces, on however large a fleet.
pub(super) const SALT_BYTES: usize = 16;

/// Most keys kept: the current one and those before it. Rotation makes a new one every half lifetime, so three cover it.
const KEYS_MAX: usize = 4;

/// The size of a ticket key.
const SECRET_BYTES: usize = 32;

/// A key as a successor is given it: id, secret, creation in big-endian seconds since the Unix epoch.
const EXPORTED_BYTES: usize = KEY_ID_BYTES + SECRET_BYTES + 8;

struct TicketKey {
    id: [u8; KEY_ID_BYTES],
    /// Kept for a successor only.
    secret: Zeroizing<[u8; SECRET_BYTES]>,
    extract: hkdf::Prk,
    created_unix_s: u64,
}

/// The ticket keys of one moment. Replaced whole when they rotate.
pub struct Keyring {
    /// Newest first; never empty.
    keys: Vec<std::sync::Arc<TicketKey>>,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyring").field("keys", &self.keys.len()).finish_non_exhaustive()
    }
}

impl Keyring {
    /// A keyring with one fresh key.
    ///
    /// # Errors
    ///
    /// [`NoRandom`].
    pub fn generate(now_unix_s: u64) -> Result<Self, NoRandom> {
        Ok(Self { keys: vec![TicketKey::generate(now_unix_s)?] })
    }

    /// A keyring with a fresh current key, and those of this one that may still open a ticket `lifetime_s` old.
    ///
    /// # Errors
    ///
    /// [`NoRandom`].
    pub fn rotate(&self, now_unix_s: u64, lifetime_s: u64) -> Result<Self, NoRandom> {
        let mut keys = vec![TicketKey::generate(now_unix_s)?];
        // A key has sealed tickets until it was replaced: the creation of its successor, which for the current one is now.
        let mut replaced = now_unix_s;
        for key in &self.keys {
            if replaced + lifetime_s > now_unix_s || replaced == now_unix_s {
                keys.push(std::sync::Arc::clone(key));
            }
            replaced = key.created_unix_s;
        }
        keys.truncate(KEYS_MAX);
        Ok(Self { keys })
    }

    /// All keys, for the process that takes over. Whoever holds these bytes opens every ticket.
    pub fn export(&self) -> Zeroizing<Vec<u8>> {
        // Sized at once: growing would leave copies behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(self.keys.len() * EXPORTED_BYTES));
        for key in &self.keys {
            bytes.extend_from_slice(&key.id);
            bytes.extend_from_slice(&*key.secret);
            bytes.extend_from_slice(&key.created_unix_s.to_be_bytes());
        }
        bytes
    }

    /// The keys of the process that served before; `None` if these are none.
    pub fn import(bytes: &[u8]) -> Option<Self> {
        let (keys, rest) = bytes.as_chunks::<EXPORTED_BYTES>();
        if keys.is_empty() || keys.len() > KEYS_MAX || !rest.is_empty() {
            return None;
        }
        let keys = keys.iter().map(|key| {
            let (id, key) = key.split_first_chunk()?;
            let (secret, created) = key.split_first_chunk()?;
            let created_unix_s = u64::from_be_bytes(created.try_into().ok()?);
            Some(std::sync::Arc::new(TicketKey::new(*id, &Zeroizing::new(*secret), created_unix_s)))
        });
        Some(Self { keys: keys.collect::<Option<_>>()? })
    }

    /// When the current key was made, seconds since the Unix epoch.
    pub fn created_unix_s(&self) -> u64 {
        self.keys[0].created_unix_s
    }

    /// The current key: its id, a fresh salt, and the key for one ticket.
    pub(super) fn seal_key(&self) -> Option<([u8; KEY_ID_BYTES], [u8; SALT_BYTES], LessSafeKey)> {
        let mut salt = [0; SALT_BYTES];
        // A generator in user space, seeded by the system: ring would make a system call for each ticket.
        aws_lc_rs::rand::fill(&mut salt).ok()?;
        let key = &self.keys[0];
        Some((key.id, salt, key.derive(&salt)?))
    }

    /// The key for a ticket that names `id` and `salt`.
    pub(super) fn open_key(&self, id: &[u8], salt: &[u8]) -> Option<LessSafeKey> {
        self.keys.iter().find(|key| key.id == id)?.derive(salt)
    }
}

impl TicketKey {
    fn generate(now_unix_s: u64) -> Result<std::sync::Arc<Self>, NoRandom> {
        let random = SystemRandom::new();
        let mut secret = Zeroizing::new([0; SECRET_BYTES]);
        random.fill(&mut *secret).map_err(|_| NoRandom)?;
        let mut id = [0; KEY_ID_BYTES];
        random.fill(&mut id).map_err(|_| NoRandom)?;
        Ok(std::sync::Arc::new(Self::new(id, &secret, now_unix_s)))
    }

    fn new(id: [u8; KEY_ID_BYTES], secret: &Zeroizing<[u8; SECRET_BYTES]>, created_unix_s: u64) -> Self {
        let extract = hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, &**secret);
        Self { id, secret: secret.clone(), extract, created_unix_s }
    }

    fn derive(&self, salt: &[u8]) -> Option<LessSafeKey> {
        let info = [b"hostward ticket 1".as_slice(), salt];
        let okm = self.extract.expand(&info, &aead::AES_256_GCM).ok()?;
        Some(LessSafeKey::new(UnboundKey::from(okm)))
    }
}

#[cfg(test)]
mod tests {
    use super::Keyring;

    #[test]
    fn a_rotated_keyring_honours_old_tickets_for_their_lifetime_only() {
        let first = Keyring::generate(1000).unwrap();
        let (id, salt, _) = first.seal_key().unwrap();
        let second = first.rotate(1500, 1000).unwrap();
        assert!(second.open_key(&id, &salt).is_some());
        assert_ne!(second.seal_key().unwrap().0, id);
        let third = second.rotate(2000, 1000).unwrap();
        assert!(third.open_key(&id, &salt).is_some(), "replaced at 1500, honoured until 2500");
        let fourth = third.rotate(2500, 1000).unwrap();
        assert!(fourth.open_key(&id, &salt).is_none());
    }

    #[test]
    fn a_successor_opens_what_its_predecessor_sealed() {
        let first = Keyring::generate(1000).unwrap();
        let second = first.rotate(1500, 1000).unwrap();
        let imported = Keyring::import(&second.export()).unwrap();
        assert_eq!(imported.created_unix_s(), 1500);
        for keyring in [&first, &second] {
            let (id, salt, sealing) = keyring.seal_key().unwrap();
            let nonce = || ring::aead::Nonce::assume_unique_for_key([0; 12]);
            let mut text = b"sealed".to_vec();
            sealing.seal_in_place_append_tag(nonce(), ring::aead::Aad::empty(), &mut text).unwrap();
            let opening = imported.open_key(&id, &salt).unwrap();
            assert_eq!(opening.open_in_place(nonce(), ring::aead::Aad::empty(), &mut text).unwrap(), b"sealed");
        }
        // And forgets the old one when its predecessor would have.
        assert_eq!(imported.rotate(2500, 1000).unwrap().export().len(), second.export().len());
        let bytes = second.export();
        for bad in [&[][..], &bytes[1..], &bytes.repeat(3)] {
            assert!(Keyring::import(bad).is_none(), "{} bytes", bad.len());
        }
    }

    #[test]
    fn debug_shows_no_key() {
        let text = format!("{:?}", Keyring::generate(0).unwrap());
        assert_eq!(text, "Keyring { keys: 1, .. }");
    }
}
