//! The authority of a request (`Host`, or the one in an absolute-form target).

/// The host of an authority in the form records are found by (`registry::name::normalise_sni`): port cut, lower case, one
/// trailing dot cut. `None` if the host is no DNS name: an IP address, as clients send it that know no name, belongs to no
/// record but the default one.
pub fn normalise<'a>(_authority: &str, _out: &'a mut [u8; 255]) -> Option<&'a str> {
    unimplemented!()
}
