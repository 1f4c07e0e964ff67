//! The hash of keys and addresses: the same on every worker, in every process and on every machine.
//!
//! FNV-1a with the finaliser of MurmurHash3. No defence against chosen keys, and none is needed: a client that may choose
//! its key may choose its address, which is what hashing by that key is for.

use std::hash::{Hash, Hasher};

/// Hashes what decides where a request goes.
pub fn of(key: &(impl Hash + ?Sized)) -> u64 {
    let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
    key.hash(&mut hasher);
    hasher.finish()
}

/// The rank of an address for a key; the highest one is chosen.
pub fn rank(key: u64, address: u64) -> u64 {
    mix(key ^ mix(address))
}

/// Every bit of the result depends on every bit of the number.
pub fn mix(mut number: u64) -> u64 {
    number = (number ^ (number >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    number = (number ^ (number >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    number ^ (number >> 33)
}

struct Fnv(u64);

impl Hasher for Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        mix(self.0)
    }
}
