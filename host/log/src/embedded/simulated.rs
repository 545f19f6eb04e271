//! Files that fail and forget on demand: what was written and not synced may survive a power cut, sector by sector, or
//! not; after a failed sync it reads back well and is not on the disk.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use super::files::{Files, OpenFile};

const SECTOR: usize = 512;

/// What happens to the next operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// `allocate` and growing writes fail for want of room.
    Full,
    /// Writes stop half way.
    ShortWrite,
    /// Syncs fail, and what they should have made durable is not.
    Sync,
    /// No write goes in.
    Write,
    /// The process is killed before its next sync: from there on nothing happens any more.
    Killed,
}

#[derive(Default)]
struct Node {
    seen: Vec<u8>,
    durable: Vec<u8>,
    /// Sectors that differ, or may, between the two.
    dirty: Vec<usize>,
    /// Whether the name is durable.
    named: bool,
}

#[derive(Default)]
struct World {
    files: BTreeMap<PathBuf, Arc<Mutex<Node>>>,
    removed: Vec<(PathBuf, Arc<Mutex<Node>>)>,
    /// What stood under a name until another file was put there.
    replaced: Vec<(PathBuf, Arc<Mutex<Node>>)>,
    /// The fault, and how many operations it still strikes.
    fault: Option<(Fault, u32)>,
    syncs: u64,
    dead: bool,
}

#[derive(Clone, Default)]
pub(super) struct Simulated {
    world: Arc<Mutex<World>>,
    /// Syncs wait while this is locked.
    pub(super) gate: Arc<Mutex<()>>,
}

impl Simulated {
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    pub(super) fn fail(&self, fault: Fault, times: u32) {
        self.world().fault = Some((fault, times));
    }

    pub(super) fn heal(&self) {
        let mut world = self.world();
        (world.fault, world.dead) = (None, false);
    }

    pub(super) fn syncs(&self) -> u64 {
        self.world().syncs
    }

    pub(super) fn names(&self) -> Vec<PathBuf> {
        self.world().files.keys().cloned().collect()
    }

    /// Cuts the power: every sector not synced is kept or lost as `keep` says; so is every unsynced name and removal.
    pub(super) fn cut_power(&self, mut keep: impl FnMut() -> bool) {
        let mut world = self.world();
        world.fault = None;
        // The latest first, so that the oldest that comes back is the one that stays.
        for (path, node) in std::mem::take(&mut world.replaced).into_iter().rev() {
            if !keep() {
                world.files.insert(path, node);
            }
        }
        for (path, node) in std::mem::take(&mut world.removed) {
            if !keep() && !world.files.contains_key(&path) {
                world.files.insert(path, node);
            }
        }
        world.files.retain(|_, node| {
            let mut node = node.lock().unwrap();
            if !node.named && !keep() {
                return false;
            }
            node.named = true;
            let dirty = std::mem::take(&mut node.dirty);
            for sector in dirty {
                if keep() {
                    node.flush(sector);
                }
            }
            if node.seen.len() < node.durable.len() && keep() {
                let bytes = node.seen.len();
                node.durable.truncate(bytes);
            }
            node.seen = node.durable.clone();
            true
        });
    }

    /// Changes what is on the disk behind everyone's back.
    pub(super) fn garble(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let node = self.world().files[path].clone();
        let mut node = node.lock().unwrap();
        change(&mut node.durable);
        node.seen = node.durable.clone();
    }

    fn alive(&self) -> io::Result<()> {
        if self.world().dead {
            return Err(io::Error::other("simulated: the process is dead"));
        }
        Ok(())
    }

    fn strikes(&self, faults: &[Fault]) -> Option<Fault> {
        let mut world = self.world();
        let (fault, times) = world.fault.as_mut()?;
        if !faults.contains(fault) || *times == 0 {
            return None;
        }
        *times -= 1;
        Some(*fault)
    }
}

impl Node {
    fn flush(&mut self, sector: usize) {
        let end = ((sector + 1) * SECTOR).min(self.seen.len());
        let start = (sector * SECTOR).min(end);
        if self.durable.len() < end {
            self.durable.resize(end, 0);
        }
        let (seen, durable) = (&self.seen, &mut self.durable);
        durable[start..end].copy_from_slice(&seen[start..end]);
    }
}

fn full() -> io::Error {
    io::ErrorKind::StorageFull.into()
}

impl Files for Simulated {
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let world = self.world();
        let inside = world.files.keys().filter(|path| path.parent() == Some(dir));
        Ok(inside
            .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
            .collect())
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn OpenFile>> {
        self.alive()?;
        let node = Arc::<Mutex<Node>>::default();
        self.world().files.insert(path.into(), node.clone());
        Ok(Arc::new(SimulatedFile {
            disk: self.clone(),
            node,
        }))
    }

    fn open(&self, path: &Path, _write: bool) -> io::Result<Arc<dyn OpenFile>> {
        let node = self.world().files.get(path).cloned();
        Ok(Arc::new(SimulatedFile {
            disk: self.clone(),
            node: node.ok_or(io::ErrorKind::NotFound)?,
        }))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.alive()?;
        let mut world = self.world();
        let node = world.files.remove(path).ok_or(io::ErrorKind::NotFound)?;
        if node.lock().unwrap().named {
            world.removed.push((path.into(), node));
        }
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.alive()?;
        let mut world = self.world();
        let node = world.files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        // The name stands; which of the two files it names is what a power cut decides.
        node.lock().unwrap().named = true;
        if let Some(before) = world.files.insert(to.into(), node) {
            world.replaced.push((to.into(), before));
        }
        Ok(())
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        self.alive()?;
        if self.strikes(&[Fault::Sync]).is_some() {
            return Err(io::Error::other("simulated: sync of the folder"));
        }
        let mut world = self.world();
        world.removed.clear();
        world.replaced.clear();
        for node in world.files.values() {
            node.lock().unwrap().named = true;
        }
        Ok(())
    }
}

struct SimulatedFile {
    disk: Simulated,
    node: Arc<Mutex<Node>>,
}

impl OpenFile for SimulatedFile {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.node.lock().unwrap().seen.len() as u64)
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        self.disk.alive()?;
        let grows = self.bytes()? < bytes;
        if grows && self.disk.strikes(&[Fault::Full]).is_some() {
            return Err(full());
        }
        let mut node = self.node.lock().unwrap();
        let bytes = node.seen.len().max(bytes as usize);
        node.seen.resize(bytes, 0);
        drop(node);
        self.sync()?;
        self.node.lock().unwrap().durable.resize(bytes, 0);
        Ok(())
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        self.disk.alive()?;
        // Durable at some later time only, if ever.
        let mut node = self.node.lock().unwrap();
        node.seen.resize(bytes as usize, 0);
        node.dirty.retain(|sector| sector * SECTOR < bytes as usize);
        Ok(())
    }

    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let node = self.node.lock().unwrap();
        let from = (at as usize).min(node.seen.len());
        let bytes = buf.len().min(node.seen.len() - from);
        buf[..bytes].copy_from_slice(&node.seen[from..from + bytes]);
        Ok(bytes)
    }

    fn write_all_at(&self, buf: &[u8], at: u64) -> io::Result<()> {
        self.disk.alive()?;
        let struck = self.disk.strikes(&[Fault::ShortWrite, Fault::Write]);
        let part = match struck {
            None => buf.len(),
            Some(Fault::ShortWrite) => buf.len() / 2,
            Some(_) => 0,
        };
        let at = at as usize;
        let mut node = self.node.lock().unwrap();
        if at + part > node.seen.len() {
            return Err(full());
        }
        node.seen[at..at + part].copy_from_slice(&buf[..part]);
        if part > 0 {
            for sector in at / SECTOR..=(at + part - 1) / SECTOR {
                if !node.dirty.contains(&sector) {
                    node.dirty.push(sector);
                }
            }
        }
        match struck {
            None => Ok(()),
            Some(_) => Err(full()),
        }
    }

    fn sync(&self) -> io::Result<()> {
        drop(self.disk.gate.lock().unwrap());
        if self.disk.strikes(&[Fault::Killed]).is_some() {
            self.disk.world().dead = true;
        }
        self.disk.alive()?;
        self.disk.world().syncs += 1;
        let failed = self.disk.strikes(&[Fault::Sync]).is_some();
        let mut node = self.node.lock().unwrap();
        let dirty = std::mem::take(&mut node.dirty);
        if failed {
            // As on Linux: the pages count as clean from now on, and some never reach the disk.
            for sector in dirty.into_iter().step_by(2) {
                node.flush(sector);
            }
            return Err(io::Error::other("simulated: sync"));
        }
        for sector in dirty {
            node.flush(sector);
        }
        // How long the file is belongs to its data.
        let bytes = node.seen.len().max(node.durable.len());
        node.durable.resize(bytes, 0);
        Ok(())
    }

    fn forget_cached(&self) {
        let mut node = self.node.lock().unwrap();
        if node.dirty.is_empty() {
            let bytes = node.seen.len().min(node.durable.len());
            let Node { seen, durable, .. } = &mut *node;
            seen[..bytes].copy_from_slice(&durable[..bytes]);
        }
    }
}
