//! An image: a folder with a manifest, `agora.toml`, and the components beside it.

use std::path::{Path, PathBuf};

use super::manifest::{Fault, Manifest};

/// An image whose manifest is right.
#[derive(Debug, Clone)]
pub struct Image {
    /// Its folder.
    pub folder: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
}

/// Why there is no image to run.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// There is no manifest.
    #[error("no manifest at {}: {source} (an image is a folder with an agora.toml; see docs/manifest.md)", path.display())]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
        /// Why it can't be read.
        source: std::io::Error,
    },
    /// The manifest is wrong.
    #[error("{}", faults.iter().map(|fault| format!("{}:{}: {}", path.display(), fault.line, fault.text)).collect::<Vec<_>>().join("\n"))]
    Faults {
        /// The manifest.
        path: PathBuf,
        /// Everything wrong in it.
        faults: Vec<Fault>,
    },
}

impl Image {
    /// Reads an image: its folder, or its manifest.
    ///
    /// # Errors
    /// See [`ImageError`].
    pub fn read(path: &Path) -> Result<Self, ImageError> {
        let manifest_path = match path.is_dir() {
            true => path.join("agora.toml"),
            false => path.to_owned(),
        };
        let bytes = std::fs::read(&manifest_path).map_err(|source| ImageError::Missing {
            path: manifest_path.clone(),
            source,
        })?;
        let text = String::from_utf8(bytes).map_err(|error| {
            let good = error.utf8_error().valid_up_to();
            let line = error.as_bytes()[..good]
                .iter()
                .filter(|b| **b == b'\n')
                .count()
                + 1;
            ImageError::Faults {
                path: manifest_path.clone(),
                faults: vec![Fault {
                    line,
                    text: "what stands here is not UTF-8".into(),
                }],
            }
        })?;
        let folder = match manifest_path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        match Manifest::parse(&text, &folder) {
            Ok(manifest) => Ok(Self { folder, manifest }),
            Err(faults) => Err(ImageError::Faults {
                path: manifest_path,
                faults,
            }),
        }
    }

    /// The data folder of a host that runs it, where none is named: `.agora` beside the image's folder.
    pub fn data_folder(&self) -> PathBuf {
        let folder = std::fs::canonicalize(&self.folder).unwrap_or_else(|_| self.folder.clone());
        let beside = folder.parent().unwrap_or(&folder).join(".agora");
        match std::env::current_dir() {
            // As short as a person would write it.
            Ok(here) if beside.parent() == Some(&here) => PathBuf::from(".agora"),
            _ => beside,
        }
    }
}
