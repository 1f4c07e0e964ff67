//! Bodies of every framing, in any pieces.

use proptest::prelude::*;

use super::*;

fn chunked(input: &[u8]) -> (Vec<u8>, Result<usize, BadBody>) {
    let mut body = Body::request(Framing::Chunked, None, false);
    let passed = pass_all(&mut body, [input]);
    assert!(passed.1.is_err() || body.is_done(), "{}", input.escape_ascii());
    passed
}

#[test]
fn lengths_are_kept() {
    let mut body = Body::request(Framing::Length(5), Some(5), false);
    assert_eq!(pass_all(&mut body, [&b"he"[..], b"llo, next"]), (b"hello".to_vec(), Ok(5)));
    assert!(body.is_done() && body.end_of_stream().is_ok());
    assert_eq!(body.passed_bytes(), 5);
    assert_eq!(body.pass(b"next", &mut |_| panic!("nothing passes")), Ok(0));

    let mut none = Body::request(Framing::None, Some(0), false);
    assert!(none.is_done());
    assert_eq!(none.pass(b"next", &mut |_| panic!("nothing passes")), Ok(0));
}

#[test]
fn the_end_of_a_stream_ends_only_what_it_may() {
    let mut until_close = Body::response(ResponseFraming::UntilClose, false);
    assert_eq!(pass_all(&mut until_close, [&b"he"[..], b"llo"]).0, b"hello");
    assert!(!until_close.is_done());
    assert_eq!(until_close.end_of_stream(), Ok(()));
    assert!(until_close.is_done());

    for mut body in [Body::request(Framing::Length(5), None, false), Body::request(Framing::Chunked, None, false)] {
        pass_all(&mut body, [&b"4\r\n"[..]]).1.expect("a beginning");
        assert_eq!(body.end_of_stream(), Err(BadBody::CutShort));
        assert_eq!(body.pass(b"x", &mut |_| panic!("nothing passes")), Err(BadBody::CutShort));
        assert!(!body.is_done());
    }
}

#[test]
fn chunks_become_canonical() {
    for (input, expected) in [
        ("5\r\nhello\r\n0\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n"),
        ("0\r\n\r\n", "0\r\n\r\n"),
        ("A\r\n0123456789\r\n0\r\n\r\n", "A\r\n0123456789\r\n0\r\n\r\n"),
        ("0005\r\nhello\r\n000\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n"),
        ("5;a=b;c\r\nhello\r\n5\r\nworld\r\n0;d\r\n\r\n", "5\r\nhello\r\n5\r\nworld\r\n0\r\n\r\n"),
        ("ffffffffffffffff", ""),
        ("0\r\nX-Sum:  1 \r\n\r\n", "0\r\nX-Sum: 1\r\n\r\n"),
        (
            "0\r\nContent-Length: 5\r\nTE: x\r\nClient_Cert: x\r\nX-Forwarded-For: x\r\nHost: x\r\nA: 1\r\nX_Y: x\r\n\r\n",
            "0\r\nA: 1\r\n\r\n",
        ),
    ] {
        let mut body = Body::request(Framing::Chunked, None, false);
        assert_eq!(String::from_utf8_lossy(&pass_all(&mut body, [input.as_bytes()]).0), expected, "{input}");
    }
}

#[test]
fn what_is_canonical_passes_as_one_slice() {
    let input = b"5\r\nhello\r\n6\r\n, next\r\n0\r\n\r\nGET /";
    let mut pieces = Vec::new();
    let mut body = Body::request(Framing::Chunked, None, false);
    let consumed = body.pass(input, &mut |piece| pieces.push((piece.as_ptr(), piece.len())));
    assert_eq!(consumed, Ok(input.len() - 5));
    assert_eq!(pieces, [(input.as_ptr(), input.len() - 5)]);
}

#[test]
fn responses_keep_their_trailers_and_old_clients_get_content_alone() {
    let input = b"5;x\r\nhello\r\n0\r\nmy_sum: 1\r\nConnection: x\r\n\r\n";
    let mut body = Body::response(ResponseFraming::Chunked, false);
    assert_eq!(pass_all(&mut body, [&input[..]]).0, b"5\r\nhello\r\n0\r\nmy_sum: 1\r\n\r\n");
    let mut body = Body::response(ResponseFraming::Chunked, true);
    assert_eq!(pass_all(&mut body, [&input[..]]), (b"hello".to_vec(), Ok(input.len())));
    assert!(body.is_done());
}

#[test]
fn bounds_hold_exactly() {
    let mut body = Body::request(Framing::Length(6), Some(5), false);
    assert_eq!(body.pass(b"", &mut |_| {}), Err(BadBody::TooLarge));
    assert!(Framing::Length(6).exceeds(Some(5)) && !Framing::Length(5).exceeds(Some(5)));

    let two_chunks = b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
    assert!(pass_all(&mut Body::request(Framing::Chunked, Some(5), false), [&two_chunks[..]]).1.is_ok());
    let (passed, bad) = pass_all(&mut Body::request(Framing::Chunked, Some(4), false), two_chunks.chunks(1));
    assert_eq!(bad, Err(BadBody::TooLarge));
    assert!(!passed.ends_with(b"d"));

    let extended = |bytes: usize| format!("1;{}\r\nx\r\n0\r\n\r\n", "e".repeat(bytes - 1)).into_bytes();
    assert!(chunked(&extended(4096)).1.is_ok());
    assert!(matches!(chunked(&extended(4097)).1, Err(BadBody::Malformed(_))));
    let drip = "1;eeeeeeeee\r\nx\r\n".repeat(500);
    assert!(matches!(chunked(drip.as_bytes()).1, Err(BadBody::Malformed(_))));

    let trailer = |bytes: usize| format!("0\r\nX: {}\r\n\r\n", "y".repeat(bytes - 7)).into_bytes();
    assert!(chunked(&trailer(8192)).1.is_ok());
    assert_eq!(chunked(&trailer(8193)).1, Err(BadBody::TooLong));
    let trailers = |count: usize| format!("0\r\n{}\r\n", "X: y\r\n".repeat(count)).into_bytes();
    assert!(chunked(&trailers(32)).1.is_ok());
    assert_eq!(chunked(&trailers(33)).1, Err(BadBody::TooLong));
}

/// A chunked body in one of its many spellings, with its content.
fn any_chunks() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let chunk = (prop::collection::vec(any::<u8>(), 1..40), 0..4_usize, "(;[a-z=\" ]{0,6})?", any::<bool>());
    (prop::collection::vec(chunk, 0..6), "(X-[A-Z]{1,4}: [a-z]{0,6}\r\n){0,2}").prop_map(|(chunks, trailers)| {
        let mut wire = Vec::new();
        let mut content = Vec::new();
        for (data, zeros, extension, upper) in chunks {
            let zeros = "0".repeat(zeros);
            let size = if upper { format!("{:X}", data.len()) } else { format!("{:x}", data.len()) };
            wire.extend_from_slice(format!("{zeros}{size}{extension}\r\n").as_bytes());
            wire.extend_from_slice(&data);
            wire.extend_from_slice(b"\r\n");
            content.extend_from_slice(&data);
        }
        wire.extend_from_slice(format!("0\r\n{trailers}\r\n").as_bytes());
        (wire, content)
    })
}

/// `input` cut at these places.
fn cut<'a>(input: &'a [u8], cuts: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(input.len() + 1)).collect();
    places.extend([0, input.len()]);
    places.sort_unstable();
    places.windows(2).map(|pair| &input[pair[0]..pair[1]]).collect()
}

proptest! {
    /// However a body comes in, the same comes out: canonical, and with the same content.
    #[test]
    fn pieces_make_no_difference(
        (wire, content) in any_chunks(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        next in "[A-Z]{0,4}",
    ) {
        let whole = chunked(&wire);
        prop_assert_eq!(whole.1, Ok(wire.len()));
        let longer = [&wire, next.as_bytes()].concat();
        for pieces in [cut(&longer, &cuts), longer.chunks(1).collect()] {
            let mut body = Body::request(Framing::Chunked, None, false);
            let (out, consumed) = pass_all(&mut body, pieces.clone());
            prop_assert!(body.is_done());
            prop_assert_eq!(consumed, Ok(wire.len()));
            prop_assert_eq!(body.passed_bytes(), content.len() as u64);
            prop_assert_eq!(&out.to_ascii_lowercase(), &whole.0.to_ascii_lowercase());
            // What is canonical stays as it is.
            prop_assert_eq!(&chunked(&out).0, &out);

            let mut decoded = Body::response(ResponseFraming::Chunked, true);
            prop_assert_eq!(pass_all(&mut decoded, pieces), (content.clone(), Ok(wire.len())));
        }
    }

    /// No bytes panic; what is wrong is wrong however it comes in, and what came through before is the same.
    #[test]
    fn any_bytes_are_survived(
        input in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..80),
            "(5|0|1|a|;|\r\n|\r|\n|x|hello|X: y| ){0,16}".prop_map(String::into_bytes),
        ],
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..5),
        max in prop::option::of(0..8_u64),
        decode in any::<bool>(),
    ) {
        let body = || if decode {
            Body::response(ResponseFraming::Chunked, true)
        } else {
            Body::request(Framing::Chunked, max, false)
        };
        let (_, one) = pass_all(&mut body(), [&input[..]]);
        let (pieces, several) = pass_all(&mut body(), cut(&input, &cuts));
        prop_assert_eq!(one, several);
        let (bytes, _) = pass_all(&mut body(), input.chunks(1));
        prop_assert!(bytes.to_ascii_lowercase().starts_with(&pieces.to_ascii_lowercase()), "{:?} {:?}", bytes, pieces);
    }
}
