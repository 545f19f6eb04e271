//! `agora new`: an agent's crate, and an image that runs it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use agora_realm::PersonaName;
use anyhow::Context;

use super::args::NewArgs;
use super::show;

pub(super) fn new(args: &NewArgs) -> anyhow::Result<ExitCode> {
    let path = Path::new(&args.name);
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    PersonaName::plain(name)
        .ok()
        .filter(|_| name.chars().all(|c| c != '.'))
        .filter(|_| name.starts_with(|c: char| c.is_ascii_lowercase()))
        .with_context(|| {
            format!("'{name}' can't name an agent (a letter, then at most 63 of a-z, 0-9, - and _)")
        })?;
    if path.exists() {
        anyhow::bail!("{} exists; choose another name", path.display());
    }
    let sdk = match &args.sdk {
        Some(sdk) => sdk.clone(),
        None => PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../guest-sdk")),
    };
    let sdk = std::fs::canonicalize(&sdk)
        .ok()
        .filter(|sdk| sdk.join("Cargo.toml").is_file())
        .with_context(|| {
            format!(
                "there is no guest SDK at {} (name its folder, guest-sdk in agora's checkout, with --sdk DIR)",
                sdk.display()
            )
        })?;
    let sdk = sdk.display().to_string();
    let files = [
        (
            "Cargo.toml",
            include_str!("new/Cargo.toml.in")
                .replace("{name}", name)
                .replace("{sdk}", &toml::Value::String(sdk).to_string()),
        ),
        (
            "src/lib.rs",
            include_str!("new/lib.rs.in").replace("{name}", &name.replace('-', "_")),
        ),
        (
            "image/agora.toml",
            include_str!("new/agora.toml.in").replace("{name}", name),
        ),
        (".gitignore", "/target\n/.agora\n/image/*.wasm\n".to_owned()),
    ];
    for (file, text) in files {
        let file = path.join(file);
        let written = std::fs::create_dir_all(file.parent().expect("a file in a folder"))
            .and_then(|()| std::fs::write(&file, text));
        written.with_context(|| format!("{} can't be written", file.display()))?;
    }
    show::print(&format!("{} is an agent. Run it with:\n\n", path.display()));
    show::print(&format!("    cd {}\n", path.display()));
    show::print("    agora run image --say hello='is anybody there?'\n");
    Ok(ExitCode::SUCCESS)
}
