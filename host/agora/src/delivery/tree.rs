//! The Merkle tree over the log, kept beside it, so that roots and proofs need no reading of the log.
//!
//! In: the hash of what is stored at each place, in order: void entries and junk too. Out: the root at any size, and proofs.
//! Promise: what this answers fits the root it answers; every leaf that is read from the file is checked against what was hashed over
//! it. The file is derived: what is missing or damaged is mended from the log.
//! Failure: a log that doesn't hold any more what was hashed is named as such ([`TreeError::NotTheLog`]).
//!
//! The file is 16 bytes of head, then a block for every 256 places: the root over them, a checksum of it, and their leaves. The last block,
//! which is not full yet, has leaves and no root; it is read by [`LogTree::read_only`] alone, and else told anew by the log.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agora_log::{Log, LogError, Seq};
use agora_realm::merkle::{self, Frontier, Hash, Tree};

use super::pruned::Pruned;
use crate::limits;

const HEAD: &[u8; 16] = b"agora tree 1\n\0\0\0";
/// Places of one block, and the level of its root.
const PLACES: u64 = 256;
const LEVEL: u32 = PLACES.ilog2();
const HASH_BYTES: usize = 32;
/// The root, the checksum, and four bytes of nothing.
const BLOCK_HEAD: usize = 40;
const BLOCK_BYTES: usize = BLOCK_HEAD + PLACES as usize * HASH_BYTES;

/// Why the tree has no answer.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The log, which would mend it, can't be read.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The file can't be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It covers less than was asked for.
    #[error("the tree covers {size} places of the log, and {wanted} were asked for")]
    Beyond {
        /// How many it covers.
        size: u64,
        /// How many were asked for.
        wanted: u64,
    },
    /// The file is damaged, and nothing is there to mend it from.
    #[error("{}: damaged at places {first} to {last} (a host mends it from its log: start it)", path.display())]
    Damaged {
        /// Where.
        path: PathBuf,
        /// The first place that may be concerned.
        first: u64,
        /// The last.
        last: u64,
    },
    /// The log holds something else than was hashed.
    #[error(
        "entries {first} to {last} of the log are not what this host saw there (restore the log from a copy that has them)"
    )]
    NotTheLog {
        /// The first place that may be concerned.
        first: u64,
        /// The last.
        last: u64,
    },
}

/// The leaves of a block that are not at hand.
struct Missing(u64);

struct Inner {
    /// Over the roots of the whole blocks.
    whole: Tree,
    /// The leaves after them, fewer than a block's.
    tail: Vec<Hash>,
    /// Whole blocks that the file may not have.
    unwritten: BTreeMap<u64, Arc<Vec<Hash>>>,
}

impl Inner {
    fn size(&self) -> u64 {
        self.whole.size() * PLACES + self.tail.len() as u64
    }

    fn push(&mut self, leaf: Hash) {
        self.tail.push(leaf);
        if self.tail.len() as u64 == PLACES {
            let leaves = std::mem::take(&mut self.tail);
            let block = self.whole.size();
            self.whole.push(root_over(&leaves));
            self.unwritten.insert(block, Arc::new(leaves));
            if self.unwritten.len() > limits::TREE_BLOCKS_UNWRITTEN_MAX {
                // Should they be asked for, the log tells them again.
                self.unwritten.pop_first();
            }
        }
    }
}

/// The tree over the log.
pub struct LogTree {
    path: PathBuf,
    file: File,
    log: Option<Arc<dyn Log>>,
    pruned: Option<Arc<Pruned>>,
    inner: Mutex<Inner>,
    /// Held while the file is written.
    writing: Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic under one of these would be a defect of this file; what it left is still the best there is.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn root_over(leaves: &[Hash]) -> Hash {
    let mut frontier = Frontier::new();
    leaves.iter().for_each(|leaf| frontier.push(*leaf));
    frontier.root()
}

fn offset(block: u64) -> u64 {
    HEAD.len() as u64 + block * BLOCK_BYTES as u64
}

fn checksum(block: u64, root: &[u8]) -> [u8; 4] {
    crc32c::crc32c_append(crc32c::crc32c(&block.to_le_bytes()), root).to_le_bytes()
}

/// The root that a block of the file claims, if it has one.
fn claimed_root(file: &File, block: u64) -> io::Result<Option<Hash>> {
    let mut head = [0; BLOCK_HEAD];
    file.read_exact_at(&mut head, offset(block))?;
    let (root, rest) = head.split_at(HASH_BYTES);
    let is_sound = rest[..4] == checksum(block, root) && root != [0; HASH_BYTES];
    Ok(is_sound.then(|| root.try_into().expect("32 bytes")))
}

/// The first `count` leaves of a block of the file.
fn read_leaves(file: &File, block: u64, count: usize) -> io::Result<Vec<Hash>> {
    let mut bytes = vec![0; count * HASH_BYTES];
    file.read_exact_at(&mut bytes, offset(block) + BLOCK_HEAD as u64)?;
    let leaves = bytes.chunks_exact(HASH_BYTES);
    Ok(leaves
        .map(|leaf| leaf.try_into().expect("32 bytes"))
        .collect())
}

/// All leaves that the file at `path` has, as they stand there: nothing is checked, and those of the last block may be left over.
///
/// # Errors
/// The operating system says no.
pub fn leaves(path: &Path) -> io::Result<Vec<Hash>> {
    let file = File::open(path)?;
    let bytes = file.metadata()?.len().saturating_sub(offset(0));
    let mut leaves = Vec::new();
    for block in 0..bytes.div_ceil(BLOCK_BYTES as u64) {
        let left = (bytes - block * BLOCK_BYTES as u64).saturating_sub(BLOCK_HEAD as u64);
        let count = (left / HASH_BYTES as u64).min(PLACES);
        leaves.extend(read_leaves(&file, block, count as usize)?);
    }
    Ok(leaves)
}

fn block_bytes(block: u64, root: Option<Hash>, leaves: &[Hash]) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK_HEAD];
    if let Some(root) = root {
        bytes[..HASH_BYTES].copy_from_slice(&root);
        bytes[HASH_BYTES..HASH_BYTES + 4].copy_from_slice(&checksum(block, &root));
    }
    leaves.iter().for_each(|leaf| bytes.extend_from_slice(leaf));
    bytes
}

impl LogTree {
    /// Opens the tree over the first `size` places of a log, from its file as far as that goes, and from the log. `progress` is told how
    /// many places are hashed, of how many.
    ///
    /// # Errors
    /// The file or the log can't be read.
    pub async fn open(
        path: PathBuf,
        log: Arc<dyn Log>,
        size: u64,
        progress: impl FnMut(u64, u64),
    ) -> Result<Self, TreeError> {
        Self::open_with(path, log, None, size, progress).await
    }

    /// The same, of a log of which some places were pruned: their leaves are known from what was kept of them.
    ///
    /// # Errors
    /// The same.
    pub async fn open_with(
        path: PathBuf,
        log: Arc<dyn Log>,
        pruned: Option<Arc<Pruned>>,
        size: u64,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<Self, TreeError> {
        let (file, in_file) = open_file(&path).map_err(|source| TreeError::Io {
            path: path.clone(),
            source,
        })?;
        let tree = Self {
            path,
            file,
            log: Some(log.clone()),
            pruned,
            inner: Mutex::new(Inner {
                whole: Tree::new(),
                tail: Vec::new(),
                unwritten: BTreeMap::new(),
            }),
            writing: Mutex::default(),
        };
        let mut blocks = in_file.min(size / PLACES);
        if blocks > 0 && !tree.is_of_this_log(blocks).await? {
            tracing::warn!(
                "the tree's file is not of this log; hashing the log from its beginning"
            );
            blocks = 0;
        }
        for block in 0..blocks {
            let root = tree.io(claimed_root(&tree.file, block))?;
            let root = match root {
                Some(root) => root,
                None => {
                    let leaves = tree.leaves_in_log(block).await?;
                    let root = root_over(&leaves);
                    lock(&tree.inner).unwritten.insert(block, Arc::new(leaves));
                    tree.keep_or_say();
                    root
                }
            };
            lock(&tree.inner).whole.push(root);
        }
        // What stands behind is told anew; it must not be found there again should the log tell something else.
        tree.io(tree.file.set_len(offset(blocks)))?;
        loop {
            let next = tree.size() + 1;
            if next > size {
                break;
            }
            let count = usize::try_from(size - next + 1).unwrap_or(usize::MAX);
            let batch = log.read(Seq(next), count.min(4096), 16 << 20).await?;
            if batch.is_empty() {
                return Err(LogError::Closed.into());
            }
            for (seq, stored) in batch.iter().filter(|(seq, _)| seq.0 <= size) {
                let leaf = tree.leaf_of(seq.0, stored)?;
                tree.push(seq.0, leaf);
            }
            tree.keep_or_say();
            progress(tree.size(), size);
        }
        Ok(tree)
    }

    /// Opens the tree over the first `size` places from its file alone, changing nothing.
    ///
    /// # Errors
    /// The file covers less, or can't be read.
    pub fn read_only(path: &Path, size: u64) -> Result<Self, TreeError> {
        let io = |source| TreeError::Io {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(io)?;
        let bytes = file.metadata().map_err(io)?.len();
        let (blocks, rest) = (size / PLACES, (size % PLACES) as usize);
        let needed = match rest {
            0 => offset(blocks),
            rest => offset(blocks) + (BLOCK_HEAD + rest * HASH_BYTES) as u64,
        };
        if bytes < needed {
            return Err(TreeError::Beyond {
                size: (bytes.saturating_sub(offset(0)) / BLOCK_BYTES as u64) * PLACES,
                wanted: size,
            });
        }
        let mut whole = Tree::new();
        for block in 0..blocks {
            let root = match claimed_root(&file, block).map_err(io)? {
                Some(root) => root,
                // Being written just now, or damaged: then the root over all is another one, and whoever asks for it sees that.
                None => root_over(&read_leaves(&file, block, PLACES as usize).map_err(io)?),
            };
            whole.push(root);
        }
        let tail = match rest {
            0 => Vec::new(),
            rest => read_leaves(&file, blocks, rest).map_err(io)?,
        };
        Ok(Self {
            path: path.to_owned(),
            file,
            log: None,
            pruned: None,
            inner: Mutex::new(Inner {
                whole,
                tail,
                unwritten: BTreeMap::new(),
            }),
            writing: Mutex::default(),
        })
    }

    fn io<T>(&self, result: io::Result<T>) -> Result<T, TreeError> {
        result.map_err(|source| TreeError::Io {
            path: self.path.clone(),
            source,
        })
    }

    /// The leaf of a place of the log, which may have been pruned.
    fn leaf_of(&self, seq: u64, stored: &[u8]) -> Result<Hash, TreeError> {
        if stored.is_empty()
            && let Some(pruned) = &self.pruned
            && let Some(stub) = self.io(pruned.get(seq))?
        {
            return Ok(stub.leaf);
        }
        Ok(merkle::leaf(stored))
    }

    /// Whether the last of the file's whole blocks ends with what the log has there.
    async fn is_of_this_log(&self, blocks: u64) -> Result<bool, TreeError> {
        let Some(log) = &self.log else {
            return Ok(true);
        };
        let leaves = self.io(read_leaves(&self.file, blocks - 1, PLACES as usize))?;
        let root = self.io(claimed_root(&self.file, blocks - 1))?;
        if root != Some(root_over(&leaves)) {
            // Damaged: that says nothing of the log, and is mended.
            return Ok(true);
        }
        let last = Seq(blocks * PLACES);
        let stored = log.read(last, 1, usize::MAX).await?;
        let found = stored.first().filter(|(seq, _)| *seq == last);
        let found = found.map(|(_, stored)| self.leaf_of(last.0, stored));
        Ok(found.transpose()?.as_ref() == leaves.last())
    }

    /// The leaves of a block, hashed anew.
    async fn leaves_in_log(&self, block: u64) -> Result<Vec<Hash>, TreeError> {
        let (first, last) = (block * PLACES + 1, (block + 1) * PLACES);
        let Some(log) = &self.log else {
            return Err(TreeError::Damaged {
                path: self.path.clone(),
                first,
                last,
            });
        };
        let mut leaves = Vec::with_capacity(PLACES as usize);
        while (leaves.len() as u64) < PLACES {
            let next = Seq(first + leaves.len() as u64);
            let batch = log
                .read(next, PLACES as usize - leaves.len(), 16 << 20)
                .await?;
            if batch.is_empty() {
                return Err(TreeError::NotTheLog { first, last });
            }
            for (seq, stored) in &batch {
                leaves.push(self.leaf_of(seq.0, stored)?);
            }
        }
        leaves.truncate(PLACES as usize);
        Ok(leaves)
    }

    /// How many places it covers.
    pub fn size(&self) -> u64 {
        lock(&self.inner).size()
    }

    /// Adds the leaf of the next place.
    pub fn push(&self, seq: u64, leaf: Hash) {
        let mut inner = lock(&self.inner);
        if seq == inner.size() + 1 {
            inner.push(leaf);
        } else {
            debug_assert!(false, "place {seq} after {}", inner.size());
            tracing::error!("the tree has no place {seq} after {}", inner.size());
        }
    }

    /// The size and the root of all that it covers now.
    pub fn now(&self) -> (u64, Hash) {
        // Hashed without the lock, which whoever judges may be waiting for.
        let (peaks, blocks, tail) = {
            let inner = lock(&self.inner);
            let blocks = inner.whole.size();
            let mut peaks = BTreeMap::new();
            let mut begin = 0;
            while begin < blocks {
                let level = (blocks - begin).ilog2();
                let index = begin >> level;
                let peak = inner.whole.node(level, index);
                peaks.insert((level, index), peak.expect("it is whole"));
                begin += 1 << level;
            }
            (peaks, blocks, inner.tail.clone())
        };
        let size = blocks * PLACES + tail.len() as u64;
        let root = merkle::root(size, |level, index| {
            Ok::<_, Infallible>(match level.checked_sub(LEVEL) {
                Some(level) => peaks[&(level, index)],
                None => perfect(&tail, level, index & ((PLACES >> level) - 1)),
            })
        });
        match root {
            Ok(root) => (size, root),
            Err(never) => match never {},
        }
    }

    /// The root of its first `size` places.
    ///
    /// # Errors
    /// It covers less, or a damaged part can't be mended.
    pub async fn root(&self, size: u64) -> Result<Hash, TreeError> {
        self.covers(size)?;
        self.made(|| merkle::root(size, |level, index| self.node(level, index)))
            .await
    }

    /// The proof that the place `seq` is in the tree of the first `size` places.
    ///
    /// # Errors
    /// It covers less, or a damaged part can't be mended.
    pub async fn inclusion(&self, seq: u64, size: u64) -> Result<Vec<Hash>, TreeError> {
        self.covers(size.max(seq))?;
        let index = seq.saturating_sub(1);
        self.made(|| merkle::inclusion(index, size, |level, index| self.node(level, index)))
            .await
    }

    /// The proof that the tree of the first `new` places begins with that of the first `old`.
    ///
    /// # Errors
    /// It covers less, or a damaged part can't be mended.
    pub async fn consistency(&self, old: u64, new: u64) -> Result<Vec<Hash>, TreeError> {
        self.covers(new.max(old))?;
        self.made(|| merkle::consistency(old, new, |level, index| self.node(level, index)))
            .await
    }

    /// The leaves of the places from `first` to `last`.
    ///
    /// # Errors
    /// It covers less, or a damaged part can't be mended.
    pub async fn leaves(&self, first: u64, last: u64) -> Result<Vec<Hash>, TreeError> {
        self.covers(last)?;
        let (first, last) = (first.max(1), last);
        let mut all = Vec::new();
        let mut next = first;
        while next <= last {
            let (block, at) = ((next - 1) / PLACES, ((next - 1) % PLACES) as usize);
            let leaves = self.made(|| self.block(block)).await?;
            let count = leaves
                .len()
                .saturating_sub(at)
                .min((last - next + 1) as usize);
            if count == 0 {
                return Err(TreeError::Beyond {
                    size: next - 1,
                    wanted: last,
                });
            }
            all.extend_from_slice(&leaves[at..at + count]);
            next += count as u64;
        }
        Ok(all)
    }

    /// The leaves of one block, checked against its root; of the last one, as many as it has.
    fn block(&self, block: u64) -> Result<Arc<Vec<Hash>>, Missing> {
        let root = {
            let inner = lock(&self.inner);
            if block == inner.whole.size() {
                return Ok(Arc::new(inner.tail.clone()));
            }
            if let Some(leaves) = inner.unwritten.get(&block) {
                return Ok(leaves.clone());
            }
            inner.whole.node(0, block)
        };
        match read_leaves(&self.file, block, PLACES as usize) {
            Ok(leaves) if root == Some(root_over(&leaves)) => Ok(Arc::new(leaves)),
            _ => Err(Missing(block)),
        }
    }

    fn covers(&self, wanted: u64) -> Result<(), TreeError> {
        match self.size() {
            size if size < wanted => Err(TreeError::Beyond { size, wanted }),
            _ => Ok(()),
        }
    }

    /// Makes something of the nodes, mending what is missing for it.
    async fn made<T>(&self, make: impl Fn() -> Result<T, Missing>) -> Result<T, TreeError> {
        let mut mended = None;
        loop {
            let Missing(block) = match make() {
                Ok(made) => return Ok(made),
                Err(missing) => missing,
            };
            let (first, last) = (block * PLACES + 1, (block + 1) * PLACES);
            if mended == Some(block) {
                // It was at hand a moment ago: too much waits to be written.
                let path = self.path.clone();
                return Err(TreeError::Damaged { path, first, last });
            }
            let leaves = self.leaves_in_log(block).await?;
            let mut inner = lock(&self.inner);
            if inner.whole.node(0, block) != Some(root_over(&leaves)) {
                return Err(TreeError::NotTheLog { first, last });
            }
            inner.unwritten.insert(block, Arc::new(leaves));
            mended = Some(block);
        }
    }

    fn node(&self, level: u32, index: u64) -> Result<Hash, Missing> {
        let inner = lock(&self.inner);
        if let Some(level) = level.checked_sub(LEVEL) {
            return Ok(inner.whole.node(level, index).expect("it is covered"));
        }
        let block = index >> (LEVEL - level);
        let index = index & ((PLACES >> level) - 1);
        if block == inner.whole.size() {
            return Ok(perfect(&inner.tail, level, index));
        }
        if let Some(leaves) = inner.unwritten.get(&block) {
            return Ok(perfect(leaves, level, index));
        }
        let leaves = read_leaves(&self.file, block, PLACES as usize).map_err(|_| Missing(block))?;
        match inner.whole.node(0, block) == Some(root_over(&leaves)) {
            true => Ok(perfect(&leaves, level, index)),
            false => Err(Missing(block)),
        }
    }

    /// Writes what the file does not have yet. Blocks, but not for a sync: what a crash takes away is told anew by the log.
    ///
    /// # Errors
    /// The operating system says no; what is not written is kept in memory, and the oldest of it forgotten when that is too much.
    pub fn keep(&self) -> io::Result<()> {
        let _one = lock(&self.writing);
        let (unwritten, tail_block, tail) = {
            let inner = lock(&self.inner);
            let unwritten: Vec<_> = inner
                .unwritten
                .iter()
                .map(|(block, leaves)| (*block, leaves.clone()))
                .collect();
            (unwritten, inner.whole.size(), inner.tail.clone())
        };
        for (block, leaves) in unwritten {
            let bytes = block_bytes(block, Some(root_over(&leaves)), &leaves);
            self.file.write_all_at(&bytes, offset(block))?;
            let mut inner = lock(&self.inner);
            if let Some(now) = inner.unwritten.get(&block)
                && Arc::ptr_eq(now, &leaves)
            {
                inner.unwritten.remove(&block);
            }
        }
        if !tail.is_empty() {
            let bytes = block_bytes(tail_block, None, &tail);
            self.file.write_all_at(&bytes, offset(tail_block))?;
        }
        Ok(())
    }

    fn keep_or_say(&self) {
        if let Err(error) = self.keep() {
            tracing::warn!("{}: {error}", self.path.display());
        }
    }
}

/// The root of a perfect subtree of these leaves.
fn perfect(leaves: &[Hash], level: u32, index: u64) -> Hash {
    let first = (index as usize) << level;
    root_over(&leaves[first..first + (1 << level)])
}

/// The file, new where it is none of ours, and how many whole blocks it has room for.
fn open_file(path: &Path) -> io::Result<(File, u64)> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    let bytes = file.metadata()?.len();
    let mut head = [0; HEAD.len()];
    let is_ours =
        bytes >= HEAD.len() as u64 && file.read_exact_at(&mut head, 0).is_ok() && head == *HEAD;
    if !is_ours {
        file.set_len(0)?;
        file.write_all_at(HEAD, 0)?;
        return Ok((file, 0));
    }
    Ok((file, (bytes - HEAD.len() as u64) / BLOCK_BYTES as u64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use agora_log::{Class, Embedded, Options};
    use bytes::Bytes;

    async fn log_of(entries: u64, folder: &Path) -> Arc<dyn Log> {
        std::fs::create_dir_all(folder).unwrap();
        let (log, _) = Embedded::open(folder, Options::default()).unwrap();
        append(&log, "entry", entries).await;
        Arc::new(log)
    }

    async fn append(log: &dyn Log, what: &str, entries: u64) {
        let from = log.end().0;
        let appends = (from..from + entries).map(|n| {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&n.to_le_bytes());
            log.append(id, Bytes::from(format!("{what} {n}")), Class::Ordinary)
        });
        for appended in futures::future::join_all(appends).await {
            appended.unwrap();
        }
    }

    fn expected(entries: u64) -> Tree {
        let mut tree = Tree::new();
        (0..entries).for_each(|n| tree.push(merkle::leaf(format!("entry {n}").as_bytes())));
        tree
    }

    async fn assert_is(tree: &LogTree, expected: &Tree) {
        let size = expected.size();
        assert_eq!(tree.now(), (size, expected.root(size).unwrap()));
        for (first, last) in [(1, 1), (1, size), (255, 257), (256, 600), (size, size)] {
            let leaves = (first - 1..last).map(|at| expected.node(0, at).unwrap());
            let leaves: Vec<_> = leaves.collect();
            assert_eq!(tree.leaves(first, last).await.unwrap(), leaves);
        }
        for old in [1, 2, 255, 256, 257, 511, 512, 700] {
            let root = expected.root(old).unwrap();
            assert_eq!(tree.root(old).await.unwrap(), root, "{old}");
            let proof = tree.consistency(old, size).await.unwrap();
            assert_eq!(Some(proof), expected.consistency(old, size));
            let proof = tree.inclusion(old, size).await.unwrap();
            assert_eq!(Some(proof), expected.inclusion(old - 1, size));
        }
    }

    #[tokio::test]
    async fn it_is_that_of_the_log_however_it_came_to_be() {
        let dir = tempfile::tempdir().unwrap();
        let log = log_of(1000, &dir.path().join("log")).await;
        let path = dir.path().join("tree");
        let all = expected(1000);
        // From the log alone, and from parts of it.
        for size in [0, 1, 255, 256, 600, 1000] {
            let tree = LogTree::open(path.clone(), log.clone(), size, |_, _| {})
                .await
                .unwrap();
            for n in size..1000 {
                tree.push(n + 1, merkle::leaf(format!("entry {n}").as_bytes()));
            }
            assert_is(&tree, &all).await;
            tree.keep().unwrap();
            let shown = LogTree::read_only(&path, 1000).unwrap();
            assert_is(&shown, &all).await;
            let shown = LogTree::read_only(&path, 700).unwrap();
            assert_eq!(shown.now(), (700, all.root(700).unwrap()));
        }
        assert!(matches!(
            LogTree::read_only(&path, 1025),
            Err(TreeError::Beyond { .. })
        ));
    }

    #[tokio::test]
    async fn what_is_not_written_yet_is_answered_nevertheless() {
        let dir = tempfile::tempdir().unwrap();
        let log = log_of(1000, &dir.path().join("log")).await;
        let tree = LogTree::open(dir.path().join("tree"), log, 0, |_, _| {})
            .await
            .unwrap();
        for n in 0..1000 {
            tree.push(n + 1, merkle::leaf(format!("entry {n}").as_bytes()));
        }
        assert_is(&tree, &expected(1000)).await;
        lock(&tree.inner).unwritten.clear();
        assert_is(&tree, &expected(1000)).await;
    }

    #[tokio::test]
    async fn damage_anywhere_in_the_file_is_mended_from_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let log = log_of(1000, &dir.path().join("log")).await;
        let path = dir.path().join("tree");
        let all = expected(1000);
        let whole = {
            let tree = LogTree::open(path.clone(), log.clone(), 1000, |_, _| {})
                .await
                .unwrap();
            tree.keep().unwrap();
            std::fs::read(&path).unwrap()
        };
        for at in (0..whole.len()).step_by(499) {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            std::fs::write(&path, &damaged).unwrap();
            let tree = LogTree::open(path.clone(), log.clone(), 1000, |_, _| {})
                .await
                .unwrap();
            assert_is(&tree, &all).await;
            // And while it runs.
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            tree.keep().unwrap();
            let at = (at as u64).clamp(16, offset(3) - 1);
            file.write_all_at(&[damaged[at as usize] ^ 0x21], at)
                .unwrap();
            assert_is(&tree, &all).await;
        }
        for length in [0, 5, 16, 17, 8000, whole.len() - 1] {
            std::fs::write(&path, &whole[..length]).unwrap();
            let tree = LogTree::open(path.clone(), log.clone(), 1000, |_, _| {})
                .await
                .unwrap();
            assert_is(&tree, &all).await;
        }
    }

    #[tokio::test]
    async fn the_file_of_another_log_is_not_gone_on_with() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tree");
        let other = log_of(0, &dir.path().join("other")).await;
        append(&*other, "another", 1001).await;
        let tree = LogTree::open(path.clone(), other, 1001, |_, _| {})
            .await
            .unwrap();
        tree.keep().unwrap();
        drop(tree);
        let log = log_of(1000, &dir.path().join("log")).await;
        let tree = LogTree::open(path, log, 1000, |_, _| {}).await.unwrap();
        assert_is(&tree, &expected(1000)).await;
    }

    #[tokio::test]
    async fn a_log_that_holds_something_else_mends_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let log = log_of(600, &dir.path().join("log")).await;
        let path = dir.path().join("tree");
        let tree = LogTree::open(path.clone(), log, 0, |_, _| {})
            .await
            .unwrap();
        for n in 0..600 {
            tree.push(n + 1, merkle::leaf(format!("other {n}").as_bytes()));
        }
        tree.keep().unwrap();
        assert!(tree.consistency(100, 600).await.is_ok());
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(b"damage", offset(0) + 1000).unwrap();
        let failed = tree.consistency(100, 600).await;
        assert!(matches!(
            failed,
            Err(TreeError::NotTheLog {
                first: 1,
                last: 256
            })
        ));
    }
}
