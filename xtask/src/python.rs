//! A Python with pycapnp, for the service that is written in Python.
//!
//! Out: an interpreter in a virtual environment in the target folder, with what `requirements.txt` beside the service pins.
//! Failure: without Python, or without a way to install, it says so, and the tests that need it say that they are skipped.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::{root, step, target_dir};

/// The interpreter; none: there is no way to have one here.
pub(crate) fn with_pycapnp() -> Result<Option<PathBuf>> {
    let requirements = root().join("services/folder/python/requirements.txt");
    let place = target_dir()?.join("pycapnp");
    let python = place.join("bin/python");
    let wanted = std::fs::read_to_string(&requirements)?;
    let installed = place.join("installed");
    let works = || {
        let mut probe = Command::new(&python);
        let probe = probe.args(["-c", "import capnp"]).output();
        probe.is_ok_and(|out| out.status.success())
    };
    if std::fs::read_to_string(&installed).is_ok_and(|done| done == wanted) && works() {
        return Ok(Some(python));
    }
    let make = step(
        "installing pycapnp: a virtual environment",
        Command::new("python3").args(["-m", "venv"]).arg(&place),
    );
    let install = make.and_then(|()| {
        step(
            "installing pycapnp",
            Command::new(&python)
                .args([
                    "-m",
                    "pip",
                    "install",
                    "--quiet",
                    "--disable-pip-version-check",
                ])
                .arg("--requirement")
                .arg(&requirements),
        )
    });
    match install {
        Ok(()) if works() => {
            std::fs::write(installed, wanted)?;
            Ok(Some(python))
        }
        Ok(()) => {
            eprintln!(
                "pycapnp is installed and can't be imported: the service in Python is not tested"
            );
            Ok(None)
        }
        Err(error) => {
            eprintln!("{error:#}: the service in Python is not tested");
            Ok(None)
        }
    }
}
