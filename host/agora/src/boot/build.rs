//! Builds the agents of an image from their sources.
//!
//! In: the sources that the manifest names. Out: components, where the manifest says.
//! Promise: cargo decides what is stale. Building runs code (build scripts, macros), so only sources inside the workspace that the
//! command runs in are built unasked; others need `--trust-source`.
//! Failure: what the compiler said, or what is missing and how to get it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::image::Image;

/// The target that agents are built for.
pub const TARGET: &str = "wasm32-wasip2";

/// Why agents could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A source lies outside the workspace.
    #[error("agent '{agent}': its source {} lies outside the workspace this command runs in, and building runs its code; build it with --trust-source if you trust it", path.display())]
    Untrusted {
        /// Whose.
        agent: String,
        /// Where.
        path: PathBuf,
    },
    /// A source is no crate.
    #[error("agent '{agent}': {text}")]
    Source {
        /// Whose.
        agent: String,
        /// What is wrong.
        text: String,
    },
    /// The target can't be had.
    #[error(
        "agents are built for {TARGET}, which this toolchain lacks, and it can't be installed: {0} (run `rustup target add {TARGET}`)"
    )]
    Target(String),
    /// The compiler says no.
    #[error("{0}")]
    Cargo(String),
}

/// One agent's source, resolved.
struct Source {
    agent: String,
    package: String,
    manifest: PathBuf,
    component: PathBuf,
}

/// Builds what the image has sources for. `progress` is told what goes on. Answers how many components are new.
///
/// # Errors
/// See [`BuildError`].
pub fn build(
    image: &Image,
    trust_source: bool,
    progress: &mut dyn FnMut(&str),
) -> Result<usize, BuildError> {
    let workspace = std::env::current_dir()
        .ok()
        .and_then(|here| declared_workspace(&here));
    let mut sources = Vec::new();
    for (name, spec) in &image.manifest.agents {
        let Some(source) = &spec.source else {
            continue;
        };
        let agent = name.to_string();
        let wrong = |text: String| BuildError::Source {
            agent: agent.clone(),
            text,
        };
        let folder = std::fs::canonicalize(source).map_err(|error| {
            wrong(format!(
                "its source {} can't be read: {error}",
                source.display()
            ))
        });
        let folder = match folder {
            Ok(folder) => folder,
            // An image that was shipped with its components and without their sources runs as it is.
            Err(_) if spec.component.is_file() => {
                progress(&format!(
                    "agent '{name}': its source is not here; its component is used as it is"
                ));
                continue;
            }
            Err(error) => return Err(error),
        };
        let trusted = workspace
            .as_ref()
            .is_some_and(|workspace| folder.starts_with(workspace));
        if !trusted && !trust_source {
            if spec.component.is_file() {
                progress(&format!(
                    "agent '{name}': its source lies outside this workspace; its component is used as it is (--trust-source builds it)"
                ));
                continue;
            }
            return Err(BuildError::Untrusted {
                agent,
                path: folder,
            });
        }
        let manifest = folder.join("Cargo.toml");
        let package = package_name(&manifest).map_err(wrong)?;
        sources.push(Source {
            agent: name.to_string(),
            package,
            manifest,
            component: spec.component.clone(),
        });
    }
    if sources.is_empty() {
        return Ok(0);
    }
    if !have_cargo() {
        return match sources.iter().find(|source| !source.component.is_file()) {
            None => Ok(0),
            Some(missing) => Err(BuildError::Cargo(format!(
                "agent '{}': its component {} is missing, and there is no cargo to build it (install Rust from https://rustup.rs)",
                missing.agent,
                missing.component.display()
            ))),
        };
    }
    ensure_target(progress)?;
    // One cargo for each workspace, with all of its agents.
    let mut groups: BTreeMap<PathBuf, Vec<Source>> = BTreeMap::new();
    for source in sources {
        let folder = source.manifest.parent().expect("a file in a folder");
        groups.entry(workspace_of(folder)).or_default().push(source);
    }
    let mut built = 0;
    for sources in groups.into_values() {
        built += build_group(&sources, progress)?;
    }
    Ok(built)
}

fn have_cargo() -> bool {
    let asked = Command::new("cargo")
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    asked.is_ok_and(|status| status.success())
}

/// The nearest folder, from `folder` up, whose Cargo.toml declares a workspace; `folder` itself otherwise.
fn workspace_of(folder: &Path) -> PathBuf {
    declared_workspace(folder).unwrap_or_else(|| folder.to_owned())
}

/// The same; none where no folder declares one. A folder that merely lies above others is no workspace, and vouches for none of them.
fn declared_workspace(folder: &Path) -> Option<PathBuf> {
    let folder = std::fs::canonicalize(folder).ok()?;
    let declares = |path: &Path| {
        std::fs::read_to_string(path.join("Cargo.toml")).is_ok_and(|text| {
            text.lines()
                .any(|line| line.trim_start().starts_with("[workspace"))
        })
    };
    let mut above = folder.ancestors();
    let found = above.find(|path| declares(path));
    let crate_itself = || {
        folder
            .ancestors()
            .find(|path| path.join("Cargo.toml").is_file())
    };
    found.or_else(crate_itself).map(Path::to_path_buf)
}

fn package_name(manifest: &Path) -> Result<String, String> {
    let text = std::fs::read_to_string(manifest)
        .map_err(|error| format!("its source has no {}: {error}", manifest.display()))?;
    let table: toml::Table = text
        .parse()
        .map_err(|error| format!("{}: {error}", manifest.display()))?;
    let name = table.get("package").and_then(|package| package.get("name"));
    name.and_then(toml::Value::as_str)
        .map(str::to_owned)
        .ok_or_else(|| format!("{} names no package", manifest.display()))
}

fn ensure_target(progress: &mut dyn FnMut(&str)) -> Result<(), BuildError> {
    let sysroot = Command::new("rustc")
        .args(["--print", "target-libdir", "--target", TARGET])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| BuildError::Target(format!("rustc can't be run: {error}")))?;
    let folder = String::from_utf8_lossy(&sysroot.stdout).trim().to_owned();
    if sysroot.status.success() && Path::new(&folder).is_dir() {
        return Ok(());
    }
    progress(&format!("installing the {TARGET} target with rustup"));
    let installed = Command::new("rustup")
        .args(["target", "add", TARGET])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| BuildError::Target(format!("rustup can't be run: {error}")))?;
    match installed.status.success() {
        true => Ok(()),
        false => Err(BuildError::Target(
            String::from_utf8_lossy(&installed.stderr).trim().to_owned(),
        )),
    }
}

fn build_group(sources: &[Source], progress: &mut dyn FnMut(&str)) -> Result<usize, BuildError> {
    let mut packages: Vec<_> = sources
        .iter()
        .map(|source| source.package.as_str())
        .collect();
    packages.sort_unstable();
    packages.dedup();
    progress(&format!("building {}", packages.join(", ")));
    let failed = |error: std::io::Error| BuildError::Cargo(format!("cargo can't be run: {error}"));
    let mut command = Command::new("cargo");
    command
        .args(["build", "--release", "--target", TARGET])
        .args(["--message-format", "json-render-diagnostics"])
        .arg("--manifest-path")
        .arg(&sources[0].manifest)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    for package in &packages {
        command.args(["--package", package]);
    }
    let mut child = command.spawn().map_err(failed)?;
    let stdout = child.stdout.take().expect("it was asked for");
    let stderr = child.stderr.take().expect("it was asked for");
    // Both pipes are read at once, or a full one would stop the other.
    let messages = std::thread::spawn(move || {
        let mut components = BTreeMap::new();
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let Ok(message) = serde_json::from_str::<serde_json::Value>(&line) else {
                continue;
            };
            if message["reason"] != "compiler-artifact" {
                continue;
            }
            let manifest = message["manifest_path"].as_str().unwrap_or_default();
            let files = message["filenames"].as_array().into_iter().flatten();
            for file in files.filter_map(|file| file.as_str()) {
                if file.ends_with(".wasm") {
                    components.insert(PathBuf::from(manifest), PathBuf::from(file));
                }
            }
        }
        components
    });
    let mut said = String::new();
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        let text = line.trim_start();
        if text.starts_with("Compiling") || text.starts_with("Downloading") {
            progress(text);
        }
        said.push_str(&line);
        said.push('\n');
    }
    let status = child.wait().map_err(failed)?;
    let components = messages.join().unwrap_or_default();
    if !status.success() {
        return Err(BuildError::Cargo(format!(
            "cargo could not build {}:\n{}",
            packages.join(", "),
            said.trim_end()
        )));
    }
    let mut built = 0;
    for source in sources {
        let manifest = std::fs::canonicalize(&source.manifest).unwrap_or(source.manifest.clone());
        let component = components
            .get(&manifest)
            .ok_or_else(|| BuildError::Source {
                agent: source.agent.clone(),
                text: format!(
                    "{} builds no component (add crate-type = [\"cdylib\"] under [lib])",
                    source.manifest.display()
                ),
            })?;
        let copied = copy_if_new(component, &source.component);
        if copied.map_err(|error| BuildError::Source {
            agent: source.agent.clone(),
            text: format!("{} can't be written: {error}", source.component.display()),
        })? {
            built += 1;
        }
    }
    Ok(built)
}

fn copy_if_new(from: &Path, to: &Path) -> std::io::Result<bool> {
    let new = std::fs::read(from)?;
    if std::fs::read(to).is_ok_and(|old| old == new) {
        return Ok(false);
    }
    let draft = to.with_extension("wasm.new");
    std::fs::write(&draft, &new)?;
    std::fs::rename(&draft, to)?;
    Ok(true)
}
