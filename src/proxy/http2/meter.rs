//! A peer's frames, before anything acts on them: what they cost it, and faults that need a name.
//!
//! The `h2` crate bounds header lists, continuations, resets of streams nobody has looked at, and small data frames. It
//! answers every PING and SETTINGS, takes every PRIORITY and WINDOW_UPDATE, and reads on as fast as they come. Each of these
//! costs us more than its sender (CVE-2019-9511 to 9518, CVE-2023-44487), so they are paid for out of a budget that useful
//! work fills.
//!
//! `h2` also answers frames of a wrong length with PROTOCOL_ERROR, and serves connections that do not begin with SETTINGS. Both
//! can be told by the heads of frames, so they are refused here with the codes RFC 9113 has for them.
//!
//! A function of bytes and times; no sockets, no clock.

/// The bytes a client's connection begins with (RFC 9113 section 3.4).
const PREFACE_BYTES: usize = 24;

/// Length, type, flags, stream (RFC 9113 section 4.1).
const HEAD_BYTES: usize = 9;

/// What a peer may spend at once.
///
/// A browser that leaves a page resets up to a hundred streams, which costs it two points each beyond what their requests
/// brought in; 1,000 leaves room for four such pages at once.
const BUDGET: u32 = 1_000;

/// What it gets back for each second, whatever it does: keep-alive pings and window updates of a connection that only
/// listens come to less than one a second for each stream.
const REFILL_PER_S: u64 = 50;

/// What a request brings in: clients send a priority or a window update along with it.
const REQUEST_EARNS: u32 = 2;

/// A data frame of this many bytes or more pays for one frame of control, as a measurement of the bandwidth by PING does.
const EARNING_DATA_BYTES: u32 = 1_024;

/// For so many bytes that we send the peer may update a window. Clients update two for each frame, that of the stream and that
/// of the connection, and one with small windows makes our frames small: with 4,096 a download of 3 MB in such frames was
/// taken for a flood, one in three.
const SENT_BYTES_PER_POINT: u64 = 1_024;

/// Each piece of a response lets the peer send a window update and a PING: clients of gRPC measure the round trip with one
/// whenever something comes, however little it is.
const PIECE_EARNS: u32 = 2;

/// A reset undoes a request, and what we have done for it by then: it costs the request's earnings, and as much again.
const RESET_COSTS: u32 = 2 * REQUEST_EARNS;

/// The types of frames (RFC 9113 section 6).
mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

const END_STREAM: u8 = 0x1;

/// Of SETTINGS and PING.
const ACK: u8 = 0x1;

const END_HEADERS: u8 = 0x4;

/// Meters one connection's frames.
#[derive(Debug)]
pub struct Meter {
    points: u32,
    /// When points were last given for time, milliseconds.
    refilled_ms: u64,
    /// Bytes sent that have earned nothing yet.
    sent_bytes: u64,
    preface_left: usize,
    head: [u8; HEAD_BYTES],
    head_filled: usize,
    payload_left: u32,
    /// Since when a frame of a header block, or a block itself, is not whole.
    block_since_ms: Option<u64>,
    in_block: bool,
    /// A frame has come.
    begun: bool,
}

/// Why a connection cannot go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The peer has used its budget up: ENHANCE_YOUR_CALM.
    Flood,
    /// A frame has a length that its type does not have (RFC 9113 section 4.2): FRAME_SIZE_ERROR.
    Length,
    /// The first frame is not SETTINGS (RFC 9113 section 3.4): PROTOCOL_ERROR.
    NoSettings,
}

impl Meter {
    /// A new connection, at this time.
    pub fn new(now_ms: u64) -> Self {
        Self {
            points: BUDGET,
            refilled_ms: now_ms,
            sent_bytes: 0,
            preface_left: PREFACE_BYTES,
            head: [0; HEAD_BYTES],
            head_filled: 0,
            payload_left: 0,
            // The preface and the settings behind it are waited for as a header block is.
            block_since_ms: Some(now_ms),
            in_block: true,
            begun: false,
        }
    }

    /// Since when the peer owes the rest of a header block, or its preface.
    pub fn waiting_since_ms(&self) -> Option<u64> {
        self.block_since_ms
    }

    /// Bytes were sent to the peer, for which it may send window updates.
    pub fn sent(&mut self, bytes: usize) {
        self.sent_bytes += bytes as u64;
        let earned = self.sent_bytes / SENT_BYTES_PER_POINT;
        self.sent_bytes %= SENT_BYTES_PER_POINT;
        self.earn(u32::try_from(earned).unwrap_or(BUDGET));
    }

    /// The peer was sent so many pieces of responses, as origins made them: that it takes them in crumbs earns nothing.
    pub fn answered(&mut self, pieces: u32) {
        self.earn(pieces.saturating_mul(PIECE_EARNS));
    }

    /// A stream was reset for what the peer did on it: as dear as if it had reset it itself ("made you reset").
    ///
    /// # Errors
    ///
    /// [`Fault::Flood`].
    pub fn made_us_reset(&mut self) -> Result<(), Fault> {
        self.spend(RESET_COSTS)
    }

    /// Bytes came from the peer, in order.
    ///
    /// # Errors
    ///
    /// [`Fault`]; nothing of these bytes need be looked at any more.
    pub fn received(&mut self, mut bytes: &[u8], now_ms: u64) -> Result<(), Fault> {
        let refill = now_ms.saturating_sub(self.refilled_ms) * REFILL_PER_S / 1_000;
        if refill > 0 {
            self.refilled_ms = now_ms;
            self.earn(u32::try_from(refill).unwrap_or(BUDGET));
        }
        let preface = self.preface_left.min(bytes.len());
        self.preface_left -= preface;
        bytes = &bytes[preface..];
        while !bytes.is_empty() {
            if self.payload_left > 0 {
                let skipped = bytes.len().min(self.payload_left as usize);
                // At most `payload_left`, which is a u32.
                self.payload_left -= skipped as u32;
                bytes = &bytes[skipped..];
            } else {
                let taken = bytes.len().min(HEAD_BYTES - self.head_filled);
                self.head[self.head_filled..self.head_filled + taken].copy_from_slice(&bytes[..taken]);
                self.head_filled += taken;
                bytes = &bytes[taken..];
                if self.head_filled < HEAD_BYTES {
                    break;
                }
                self.head_filled = 0;
                self.frame(now_ms)?;
            }
            if self.payload_left == 0 && !self.in_block {
                self.block_since_ms = None;
            }
        }
        Ok(())
    }

    /// The head of a frame is whole.
    fn frame(&mut self, now_ms: u64) -> Result<(), Fault> {
        let [high, middle, low, kind, flags, ..] = self.head;
        let length = u32::from_be_bytes([0, high, middle, low]);
        self.payload_left = length;
        let is_ack = flags & ACK != 0;
        if !std::mem::replace(&mut self.begun, true) && (kind != kind::SETTINGS || is_ack) {
            return Err(Fault::NoSettings);
        }
        // That of PRIORITY is an error of its stream (section 6.3), which may be taken for one of the connection (5.4).
        let fits = match kind {
            kind::PRIORITY => length == 5,
            kind::RST_STREAM | kind::WINDOW_UPDATE => length == 4,
            kind::PING => length == 8,
            kind::GOAWAY => length >= 8,
            kind::SETTINGS if is_ack => length == 0,
            kind::SETTINGS => length.is_multiple_of(6),
            _ => true,
        };
        if !fits {
            return Err(Fault::Length);
        }
        match kind {
            kind::DATA if length >= EARNING_DATA_BYTES => self.earn(1),
            // The last one of a body is often empty. Small ones are the business of `h2`, which knows what they fill.
            kind::DATA if length > 0 || flags & END_STREAM != 0 => {}
            kind::HEADERS => {
                self.earn(REQUEST_EARNS);
                self.begin_block(flags, now_ms);
            }
            kind::CONTINUATION => {
                self.begin_block(flags, now_ms);
                self.spend(1)?;
            }
            kind::RST_STREAM => self.spend(RESET_COSTS)?,
            _ => {
                // The first frame is SETTINGS, and ends the wait for the preface.
                self.in_block = false;
                self.spend(1)?;
            }
        }
        Ok(())
    }

    fn begin_block(&mut self, flags: u8, now_ms: u64) {
        self.block_since_ms.get_or_insert(now_ms);
        self.in_block = flags & END_HEADERS == 0;
    }

    fn earn(&mut self, points: u32) {
        self.points = self.points.saturating_add(points).min(BUDGET);
    }

    fn spend(&mut self, points: u32) -> Result<(), Fault> {
        self.points = self.points.checked_sub(points).ok_or(Fault::Flood)?;
        Ok(())
    }
}

/// Bytes of the code that a RST_STREAM holds (RFC 9113 section 6.4).
const CODE_BYTES: usize = 4;

/// Sees the streams that are reset by us, in the bytes we send: `h2` resets those that the peer broke by itself.
#[derive(Default, Debug)]
pub struct Resets {
    head: [u8; HEAD_BYTES + CODE_BYTES],
    head_filled: usize,
    payload_left: usize,
}

impl Resets {
    /// Bytes are sent, in order; `reset` is told the code of each RST_STREAM.
    pub fn sent(&mut self, mut bytes: &[u8], mut reset: impl FnMut(u32)) {
        while !bytes.is_empty() {
            if self.payload_left > 0 {
                let skipped = bytes.len().min(self.payload_left);
                self.payload_left -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            let is_reset = self.head_filled >= HEAD_BYTES && self.head[3] == kind::RST_STREAM;
            let wanted = if is_reset { HEAD_BYTES + CODE_BYTES } else { HEAD_BYTES };
            let taken = bytes.len().min(wanted - self.head_filled);
            self.head[self.head_filled..self.head_filled + taken].copy_from_slice(&bytes[..taken]);
            self.head_filled += taken;
            bytes = &bytes[taken..];
            let [high, middle, low, kind, ..] = self.head;
            if self.head_filled == HEAD_BYTES + CODE_BYTES {
                let [.., a, b, c, d] = self.head;
                reset(u32::from_be_bytes([a, b, c, d]));
                self.head_filled = 0;
            } else if self.head_filled == HEAD_BYTES && kind != kind::RST_STREAM {
                self.payload_left = u32::from_be_bytes([0, high, middle, low]) as usize;
                self.head_filled = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, flags: u8, length: usize) -> Vec<u8> {
        let [_, high, middle, low] = (length as u32).to_be_bytes();
        let mut bytes = vec![high, middle, low, kind, flags, 0, 0, 0, 1];
        bytes.resize(HEAD_BYTES + length, 0);
        bytes
    }

    fn begun() -> Meter {
        let mut meter = Meter::new(0);
        let mut first = vec![0; PREFACE_BYTES];
        first.extend(frame(kind::SETTINGS, 0, 0));
        meter.received(&first, 0).expect("no flood");
        meter
    }

    /// How many frames of a kind it takes, all at once, to use the budget up.
    fn taken(kind: u8, flags: u8, length: usize) -> Option<usize> {
        let mut meter = begun();
        let bytes = frame(kind, flags, length);
        (0..10_000).find(|_| meter.received(&bytes, 0).is_err())
    }

    #[test]
    fn floods_of_control_frames_end() {
        // One point went for the first SETTINGS.
        let all = BUDGET as usize - 1;
        let settings = kind::SETTINGS;
        for (kind, length) in [(kind::PING, 8), (settings, 0), (settings, 6), (2, 5), (8, 4), (77, 3), (kind::DATA, 0)]
        {
            assert_eq!(taken(kind, 0, length), Some(all), "type {kind}");
        }
        assert_eq!(taken(kind::CONTINUATION, 0, 100), Some(all));
        assert_eq!(taken(kind::RST_STREAM, 0, 4), Some(all / RESET_COSTS as usize));
    }

    #[test]
    fn work_is_free() {
        assert_eq!(taken(kind::HEADERS, END_HEADERS, 100), None);
        assert_eq!(taken(kind::DATA, 0, 16_384), None);
        assert_eq!(taken(kind::DATA, END_STREAM, 0), None);
    }

    #[test]
    fn a_request_that_is_reset_costs_more_than_it_brings() {
        let mut meter = begun();
        let pair = [frame(kind::HEADERS, END_HEADERS, 30), frame(kind::RST_STREAM, 0, 4)].concat();
        let pairs = (0..10_000).find(|_| meter.received(&pair, 0).is_err());
        assert_eq!(pairs, Some(BUDGET as usize / REQUEST_EARNS as usize - 1));
    }

    #[test]
    fn a_request_that_makes_us_reset_it_does_too() {
        let mut meter = begun();
        let head = frame(kind::HEADERS, END_HEADERS, 30);
        let made = (0..10_000).find(|_| meter.received(&head, 0).is_err() || meter.made_us_reset().is_err());
        assert_eq!(made, Some(BUDGET as usize / REQUEST_EARNS as usize - 1));
    }

    #[test]
    fn time_and_what_we_send_pay() {
        let mut meter = begun();
        let ping = frame(kind::PING, 0, 8);
        for at_s in 0..3_600 {
            for _ in 0..REFILL_PER_S {
                meter.received(&ping, at_s * 1_000).expect("as often as time allows");
            }
        }
        let update = frame(8, 0, 4);
        for _ in 0..10_000 {
            meter.sent(16_384);
            for _ in 0..2 {
                meter.received(&update, 3_600_000).expect("two updates for each frame of data");
            }
        }
    }

    /// A client of gRPC that gets many small messages answers each with a PING, as fast as they come.
    #[test]
    fn small_pieces_pay_for_pings_and_crumbs_do_not() {
        let mut meter = begun();
        let (ping, update) = (frame(kind::PING, 0, 8), frame(8, 0, 4));
        for _ in 0..10_000 {
            meter.answered(1);
            meter.sent(50);
            meter.received(&ping, 0).expect("a PING for each piece");
            meter.received(&update, 0).expect("and a window update");
        }
        // One piece, taken byte by byte.
        meter.answered(1);
        let crumbs = (0..10_000).find(|_| {
            meter.sent(10);
            meter.received(&update, 0).is_err()
        });
        assert!(crumbs.is_some_and(|crumbs| crumbs < 2 * BUDGET as usize), "{crumbs:?}");
    }

    #[test]
    fn resets_are_seen_however_they_are_cut() {
        let reset = |code: u8| {
            let mut bytes = frame(kind::RST_STREAM, 0, 4);
            bytes[HEAD_BYTES + 3] = code;
            bytes
        };
        let bytes = [
            frame(kind::SETTINGS, 0, 6),
            reset(1),
            frame(kind::DATA, 0, 40),
            reset(8),
            reset(7),
            frame(kind::PING, 0, 8),
        ];
        let bytes = bytes.concat();
        for cut in 1..bytes.len() {
            let mut resets = Resets::default();
            let mut codes = Vec::new();
            for piece in bytes.chunks(cut) {
                resets.sent(piece, |code| codes.push(code));
            }
            assert_eq!(codes, [1, 8, 7], "in pieces of {cut}");
        }
    }

    #[test]
    fn an_unfinished_block_is_seen() {
        let mut meter = Meter::new(5);
        assert_eq!(meter.waiting_since_ms(), Some(5));
        meter.received(&[0; PREFACE_BYTES], 6).unwrap();
        assert_eq!(meter.waiting_since_ms(), Some(5));
        meter.received(&frame(kind::SETTINGS, 0, 6), 7).unwrap();
        assert_eq!(meter.waiting_since_ms(), None);
        let headers = frame(kind::HEADERS, 0, 20);
        meter.received(&headers[..12], 8).unwrap();
        assert_eq!(meter.waiting_since_ms(), Some(8));
        meter.received(&headers[12..], 9).unwrap();
        assert_eq!(meter.waiting_since_ms(), Some(8), "the block is not over");
        meter.received(&frame(kind::CONTINUATION, END_HEADERS, 0), 10).unwrap();
        assert_eq!(meter.waiting_since_ms(), None);
    }

    #[test]
    fn lengths_are_those_of_the_type() {
        for (kind, flags, length) in [
            (2, 0, 4),
            (3, 0, 3),
            (3, 0, 5),
            (4, 0, 5),
            (4, 0, 7),
            (4, ACK, 6),
            (6, 0, 7),
            (6, ACK, 9),
            (7, 0, 7),
            (8, 0, 3),
            (8, 0, 5),
        ] {
            assert_eq!(begun().received(&frame(kind, flags, length), 0), Err(Fault::Length), "type {kind}, {length}");
        }
        // Unknown types, and what is as long as it likes.
        for (kind, length) in [(2, 5), (77, 1), (7, 20), (kind::DATA, 3), (kind::HEADERS, 1)] {
            assert_eq!(begun().received(&frame(kind, 0, length), 0), Ok(()), "type {kind}, {length}");
        }
    }

    #[test]
    fn settings_come_first() {
        for (kind, flags, length) in [(kind::PING, 0, 8), (kind::HEADERS, 4, 10), (8, 0, 4), (kind::SETTINGS, ACK, 0)] {
            let mut meter = Meter::new(0);
            meter.received(&[0; PREFACE_BYTES], 0).unwrap();
            assert_eq!(meter.received(&frame(kind, flags, length), 0), Err(Fault::NoSettings), "type {kind}");
        }
    }

    proptest! {
        /// However the bytes are cut, the meter sees the same frames.
        #[test]
        fn cuts_change_nothing(
            frames in prop::collection::vec((9u8..20, any::<u8>(), 0usize..40), 1..60),
            cuts in prop::collection::vec(1usize..50, 1..40),
        ) {
            let mut bytes = vec![0; PREFACE_BYTES];
            bytes.extend(frame(kind::SETTINGS, 0, 12));
            for (kind, flags, length) in frames {
                bytes.extend(frame(kind, flags, length));
            }
            let mut whole = Meter::new(0);
            whole.received(&bytes, 0).expect("few frames");
            let mut pieces = Meter::new(0);
            let mut rest = &bytes[..];
            for cut in cuts.iter().cycle() {
                let (piece, after) = rest.split_at((*cut).min(rest.len()));
                pieces.received(piece, 0).expect("few frames");
                rest = after;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(whole.points, pieces.points);
            prop_assert_eq!(whole.block_since_ms, pieces.block_since_ms);
        }
    }
}
