//! Reads peer ids and addresses, as people write them in manifests and on the command line.
//!
//! Promise: what is taken can be dialed, or listened at, as far as can be told without trying.
//! Failure: says what is wrong with the text, and shows one that is right.

use agora_dial::{Multiaddr, PeerId};

/// An address to show, for what doesn't look like one.
const EXAMPLE: &str = "/ip4/203.0.113.7/udp/4101/quic-v1";

/// A peer id, as `agora id` prints it.
///
/// # Errors
/// It is none.
pub fn parse_peer_id(text: &str) -> Result<PeerId, String> {
    text.parse().map_err(|_| {
        format!(
            "'{text}' is no peer id (it is what `agora id` prints behind `peer`, as in 12D3KooW...)"
        )
    })
}

/// Where a peer may be, and its id if the address ends in one.
///
/// # Errors
/// It is no address, or none that can be dialed.
pub fn parse_dial(text: &str) -> Result<(Multiaddr, Option<PeerId>), String> {
    let (place, id) = match text.rsplit_once("/p2p/") {
        Some((place, id)) if !id.contains('/') => (place, Some(parse_peer_id(id)?)),
        _ => (text, None),
    };
    if place.is_empty() && id.is_some() {
        return Err(format!(
            "'{text}' names who, and not where: it takes an address before it, as in {EXAMPLE}{text}"
        ));
    }
    let address = parse(place)?;
    let parts: Vec<_> = address.protocol_stack().collect();
    let port = parts.iter().position(|part| matches!(*part, "udp" | "tcp"));
    let is_zero = port.is_some_and(|at| port_of(&address, at) == Some(0));
    if is_zero {
        return Err(format!("'{text}': nobody listens at port 0"));
    }
    Ok((address, id))
}

/// Where to listen.
///
/// # Errors
/// It is no address, or none that can be listened at.
pub fn parse_listen(text: &str) -> Result<Multiaddr, String> {
    if let Some((place, _)) = text
        .rsplit_once("/p2p/")
        .filter(|(_, id)| !id.contains('/'))
    {
        return Err(format!(
            "'{text}': one listens at an address without an id: {place}"
        ));
    }
    let address = parse(text)?;
    match address.protocol_stack().next() {
        Some("ip4" | "ip6") if !text.ends_with("/p2p-circuit") => Ok(address),
        _ => Err(format!(
            "'{text}': one listens at an IP address of this machine, as in {EXAMPLE} (through a relay: `via` of [peering.relay])"
        )),
    }
}

/// Where another host is that is asked for something, with its id behind it.
///
/// # Errors
/// It is no address, none that can be dialed, or doesn't say who is there.
pub fn parse_host(text: &str) -> Result<Multiaddr, String> {
    match parse_dial(text)? {
        (_, Some(_)) => text.parse().map_err(|_| format!("'{text}' is no address")),
        (_, None) => Err(format!(
            "'{text}' doesn't say who is there: it must end in /p2p/ and that host's peer id"
        )),
    }
}

fn parse(text: &str) -> Result<Multiaddr, String> {
    // Names of hosts are taken as they are.
    if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(format!(
            "{text:?} is no address: there is a space or a line's end in it (write it like {EXAMPLE})"
        ));
    }
    if let Ok(socket) = text.parse::<std::net::SocketAddr>() {
        let kind = if socket.is_ipv4() { "ip4" } else { "ip6" };
        return Err(format!(
            "'{text}' is written /{kind}/{}/udp/{}/quic-v1 here (or .../tcp/{1})",
            socket.ip(),
            socket.port()
        ));
    }
    let address: Multiaddr = text
        .parse()
        .map_err(|_| format!("'{text}' is no address (write it like {EXAMPLE})"))?;
    let parts: Vec<_> = address.protocol_stack().collect();
    match parts[..] {
        ["ip4" | "ip6" | "dns" | "dns4" | "dns6", "udp", "quic-v1"] => Ok(address),
        ["ip4" | "ip6" | "dns" | "dns4" | "dns6", "tcp"] => Ok(address),
        // Through a relay.
        [.., "p2p", "p2p-circuit"] => Ok(address),
        [] => Err(format!("'{text}' is no address (write it like {EXAMPLE})")),
        ["ip4" | "ip6", "udp"] => Err(format!(
            "'{text}': over udp there is QUIC only (write {text}/quic-v1)"
        )),
        ["ip4" | "ip6"] => Err(format!(
            "'{text}': it names no port (write {text}/udp/4101/quic-v1 or {text}/tcp/4101)"
        )),
        _ => Err(format!(
            "'{text}' can't be used: hosts speak QUIC (/ip4/.../udp/.../quic-v1) and TCP (/ip4/.../tcp/...)"
        )),
    }
}

/// The port in the part of an address at this place.
fn port_of(address: &Multiaddr, at: usize) -> Option<u16> {
    let text = address.to_string();
    // Each part before it has a value.
    text.split('/').nth(1 + 2 * at + 1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";

    #[test]
    fn an_address_is_read_with_the_id_behind_it_or_without() {
        for text in [
            "/ip4/127.0.0.1/udp/4101/quic-v1",
            "/ip4/127.0.0.1/tcp/4101",
            "/ip6/::1/udp/4101/quic-v1",
            "/dns4/bravo.example/tcp/4101",
        ] {
            let (plain, none) = parse_dial(text).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!((plain.to_string().as_str(), none), (text, None));
            let (with, id) = parse_dial(&format!("{text}/p2p/{ID}")).expect("with an id");
            assert_eq!((with, id), (plain, ID.parse().ok()));
            assert_eq!(
                parse_listen(text).is_ok(),
                text.starts_with("/ip"),
                "{text}"
            );
            let whole = format!("{text}/p2p/{ID}");
            assert_eq!(parse_host(&whole).map(|at| at.to_string()), Ok(whole));
            assert!(parse_host(text).is_err_and(|error| error.contains("/p2p/")));
        }
        let relayed = format!("/ip4/127.0.0.1/tcp/4101/p2p/{ID}/p2p-circuit");
        let (address, none) = parse_dial(&relayed).expect("through a relay");
        assert_eq!((address.to_string(), none), (relayed.clone(), None));
        let (address, id) = parse_dial(&format!("{relayed}/p2p/{ID}")).expect("with an id");
        assert_eq!((address.to_string(), id), (relayed, ID.parse().ok()));
    }

    #[test]
    fn what_can_t_be_dialed_is_told_with_what_would_be_right() {
        for (text, told) in [
            ("127.0.0.1:4101", "/ip4/127.0.0.1/udp/4101/quic-v1"),
            ("[::1]:4101", "/ip6/::1/udp/4101/quic-v1"),
            ("bravo", "/quic-v1"),
            ("", "is no address"),
            ("/ip4/127.0.0.1", "names no port"),
            ("/ip4/127.0.0.1/udp/4101", "/udp/4101/quic-v1"),
            ("/ip4/127.0.0.1/tcp/4101/ws", "can't be used"),
            ("/ip4/127.0.0.1/udp/0/quic-v1", "port 0"),
            ("/ip4/127.0.0.1/tcp/0", "port 0"),
            ("/dns4/bravo .example/tcp/4101", "a space"),
            ("/dns4/bravo.example\n/tcp/4101", "a line's end"),
            ("/ip4/127.0.0.1/tcp/4101/p2p/bravo", "no peer id"),
            (&format!("/p2p/{ID}"), "names who"),
        ] {
            let error = parse_dial(text).expect_err(text);
            assert!(error.contains(told), "{text}: {error}");
        }
        let error = parse_listen(&format!("/ip4/0.0.0.0/tcp/4101/p2p/{ID}"));
        assert!(error.is_err_and(|error| error.contains("without an id")));
        assert!(parse_listen("/ip4/127.0.0.1/udp/0/quic-v1").is_ok());
    }
}
