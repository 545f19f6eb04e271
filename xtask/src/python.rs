//! Python packages, each in a virtual environment in the target folder: pycapnp, for the service that is written in Python,
//! and whatever else comes as one.
//!
//! Failure: without Python, or without a way to install, it says so, and the tests that need it say that they are skipped.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::{root, step, target_dir};

/// An interpreter with what `requirements.txt` beside the service pins; none: there is no way to have one here.
pub(crate) fn with_pycapnp() -> Result<Option<PathBuf>> {
    let requirements = root().join("services/folder/python/requirements.txt");
    let wanted = std::fs::read_to_string(&requirements)?;
    let place = environment("pycapnp", &wanted, |place| {
        let mut probe = Command::new(place.join("bin/python"));
        let probe = probe.args(["-c", "import capnp"]).output();
        probe.is_ok_and(|out| out.status.success())
    })?;
    if place.is_none() {
        eprintln!("the service in Python is not tested");
    }
    Ok(place.map(|place| place.join("bin/python")))
}

/// A virtual environment with what `requirements` pin, of which `works` says whether it can be used; none: there is no way
/// to have it here.
pub(crate) fn environment(
    name: &str,
    requirements: &str,
    works: impl Fn(&Path) -> bool,
) -> Result<Option<PathBuf>> {
    let place = target_dir()?.join(name);
    let installed = place.join("installed");
    if std::fs::read_to_string(&installed).is_ok_and(|done| done == requirements) && works(&place) {
        return Ok(Some(place));
    }
    let make = step(
        &format!("installing {name}: a virtual environment"),
        Command::new("python3").args(["-m", "venv"]).arg(&place),
    );
    let install = make.and_then(|()| {
        let list = place.join("requirements.txt");
        std::fs::write(&list, requirements)?;
        step(
            &format!("installing {name}"),
            Command::new(place.join("bin/python"))
                .args(["-m", "pip", "install", "--quiet"])
                .args(["--disable-pip-version-check", "--requirement"])
                .arg(list),
        )
    });
    match install {
        Ok(()) if works(&place) => {
            std::fs::write(installed, requirements)?;
            Ok(Some(place))
        }
        Ok(()) => {
            eprintln!("{name} is installed and can't be used");
            Ok(None)
        }
        Err(error) => {
            eprintln!("{error:#}");
            Ok(None)
        }
    }
}
