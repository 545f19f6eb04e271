//! Runs all suites, and those tests once more that failed among the others.
//!
//! The suites start hosts, servers and hundreds of agents side by side, on machines that may be busy with something else. A test that
//! failed there and passes by itself is named as *unsteady*, loudly, and doesn't fail the run; it is to be mended. More than
//! [`UNSTEADY_MAX`] failures, a failure that repeats, or a test program that ended without naming one, fail the run.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// With more failures than this, something is broken.
const UNSTEADY_MAX: usize = 3;

/// Runs the suites. `cargo` gives a command with the environment that they need.
pub(crate) fn run(mut cargo: impl FnMut() -> Command) -> Result<()> {
    const SUITES: [&str; 4] = ["test", "--workspace", "--all-features", "--no-fail-fast"];
    eprintln!("\n== suites");
    let first = watched(cargo().args(SUITES))?;
    if first.succeeded {
        return Ok(());
    }
    if first.failed.is_empty() || first.failed.len() > UNSTEADY_MAX || first.unnamed {
        bail!("suites: failed ({} tests)", first.failed.len());
    }
    eprintln!("\n== failed among the others; each by itself");
    let mut again = cargo();
    again
        .args(SUITES)
        .args(["--", "--exact", "--test-threads=1"]);
    let again = watched(again.args(&first.failed))?;
    if !again.succeeded {
        bail!("suites: failed ({} tests, twice)", again.failed.len());
    }
    for test in &first.failed {
        eprintln!(
            "\n*** UNSTEADY: {test} failed among the others and passed by itself; mend it ***"
        );
    }
    eprintln!();
    Ok(())
}

struct Ran {
    succeeded: bool,
    /// The tests that failed, by name.
    failed: BTreeSet<String>,
    /// Something failed that is not among them.
    unnamed: bool,
}

/// Runs it, showing what it prints, and notes which tests fail.
fn watched(command: &mut Command) -> Result<Ran> {
    let (reader, writer) = std::io::pipe()?;
    let mut child = command
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .spawn()
        .context("cargo can't be run")?;
    // The command keeps ends of the pipe; without this, reading would never end.
    command.stdout(std::process::Stdio::null());
    command.stderr(std::process::Stdio::null());
    let mut noted = Noted::default();
    let mut line = Vec::new();
    let mut reader = BufReader::new(reader);
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        let line = String::from_utf8_lossy(&line);
        eprint!("{line}");
        noted.line(&line);
    }
    let status = child.wait()?;
    Ok(Ran {
        succeeded: status.success(),
        unnamed: noted.unnamed(),
        failed: noted.failed,
    })
}

/// What the lines of `cargo test` say.
#[derive(Default)]
struct Noted {
    failed: BTreeSet<String>,
    /// The list of failures at the end of a program's output.
    listing: bool,
    /// Test programs that reported failures.
    reported: usize,
    /// How many tests they say have failed.
    counted: usize,
    /// Test programs that cargo says failed.
    programs: usize,
}

impl Noted {
    fn line(&mut self, line: &str) {
        let line = line.trim_end();
        if let Some(rest) = line.strip_prefix("test result: FAILED.") {
            let failed = rest
                .split(';')
                .find_map(|part| part.trim().strip_suffix(" failed"));
            let failed = failed.and_then(|n| n.parse().ok());
            self.counted = self.counted.saturating_add(failed.unwrap_or(usize::MAX));
            self.reported += 1;
            self.listing = false;
        } else if line == "failures:" {
            self.listing = true;
        } else if let Some(name) = line.strip_prefix("    ")
            && self.listing
            && !name.is_empty()
            && !name.contains(char::is_whitespace)
        {
            self.failed.insert(name.to_owned());
        } else if line.starts_with("---- ") {
            // The first list holds the output of the failures, not their names.
            self.listing = false;
        } else if line.starts_with("error: test failed, to rerun pass")
            || line.starts_with("error: doctest failed, to rerun pass")
        {
            self.programs += 1;
        }
    }

    fn unnamed(&self) -> bool {
        // Also a failure whose name can't be said alone: an example in a document, or one name in two programs.
        self.programs > self.reported || self.counted != self.failed.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(text: &str) -> Noted {
        let mut noted = Noted::default();
        text.lines().for_each(|line| noted.line(line));
        noted
    }

    #[test]
    fn failures_are_read_from_the_list_at_the_end() {
        let noted = noted(
            "test a::b ... FAILED\ntest c ... ok\n\nfailures:\n\n---- a::b stdout ----\n    indented\nassertion failed\n\n\nfailures:\n    a::b\n\n\
             test result: FAILED. 1 passed; 1 failed\n\nerror: test failed, to rerun pass `-p x`\nerror: 1 target failed:\n    `-p x`\n",
        );
        assert_eq!(noted.failed.into_iter().collect::<Vec<_>>(), ["a::b"]);
        assert!(noted.programs == 1 && noted.reported == 1 && noted.counted == 1);
    }

    #[test]
    fn an_example_in_a_document_is_not_run_again_by_its_name() {
        let noted = noted(
            "failures:\n\nfailures:\n    src/lib.rs - a (line 3)\n\ntest result: FAILED. 0 passed; 1 failed; 0 ignored\n",
        );
        assert!(noted.unnamed());
    }

    #[test]
    fn a_program_that_ended_without_naming_a_test_is_noticed() {
        let noted = noted("running 3 tests\nerror: test failed, to rerun pass `-p x --lib`\n");
        assert!(noted.unnamed() && noted.failed.is_empty());
    }
}
