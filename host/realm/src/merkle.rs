//! The Merkle tree over the log: RFC 6962, leaf i being what is stored at seq i + 1, void entries and junk included.
//!
//! In: leaves, one by one. Out: the root at any size, and proofs: that a leaf stands where it is said to (*inclusion*), and
//! that a smaller tree is the beginning of a larger one (*consistency*).
//! Promise: checking a proof is total: any sizes and any hashes, hostile ones too, give an answer, in time linear to the proof.
//! Failure: [`BadProof`].

use sha2::{Digest, Sha256};

/// A hash in the tree: of a leaf, or of all below a node.
pub type Hash = [u8; 32];

/// The most hashes that a proof in any tree may have.
pub const PROOF_HASHES_MAX: usize = 64;

/// The hash of what is stored at a place.
pub fn leaf(stored: &[u8]) -> Hash {
    Sha256::new()
        .chain_update([0])
        .chain_update(stored)
        .finalize()
        .into()
}

/// The hash of a node, from those of the two below it.
pub fn node(left: &Hash, right: &Hash) -> Hash {
    Sha256::new()
        .chain_update([1])
        .chain_update(left)
        .chain_update(right)
        .finalize()
        .into()
}

/// The root of a tree without leaves.
pub fn empty_root() -> Hash {
    Sha256::digest([]).into()
}

/// Why a proof proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadProof {
    /// There is no such leaf in a tree of that size.
    #[error("a tree of {size} leaves has no leaf {index}")]
    NoSuchLeaf {
        /// Which leaf, from 0.
        index: u64,
        /// Of how many.
        size: u64,
    },
    /// A tree can't begin with a larger one; and that it begins with nothing says nothing.
    #[error("a tree of {new} leaves can't be shown to extend one of {old}")]
    NoSuchExtension {
        /// The size of the first tree.
        old: u64,
        /// The size of the second.
        new: u64,
    },
    /// Proofs between these sizes have another number of hashes.
    #[error("the proof has {0} hashes, which fits no proof between these sizes")]
    WrongLength(usize),
    /// The hashes lead to another root.
    #[error("the proof leads to another root")]
    OtherRoot,
}

/// All that is needed to go on with a tree and to know its root: the roots of its perfect subtrees, largest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Frontier {
    size: u64,
    peaks: Vec<Hash>,
}

impl Frontier {
    /// A tree without leaves.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many leaves it has.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Adds a leaf, by its hash.
    pub fn push(&mut self, leaf: Hash) {
        let mut hash = leaf;
        for _ in 0..self.size.trailing_ones() {
            let left = self.peaks.pop().expect("one peak for each bit of the size");
            hash = node(&left, &hash);
        }
        self.peaks.push(hash);
        self.size += 1;
    }

    /// The root.
    pub fn root(&self) -> Hash {
        folded(&self.peaks)
    }
}

/// The root over perfect subtrees, largest first.
fn folded(peaks: &[Hash]) -> Hash {
    let mut below = peaks.iter().rev().copied();
    match below.next() {
        None => empty_root(),
        Some(last) => below.fold(last, |right, left| node(&left, &right)),
    }
}

/// A tree with all its nodes, from which any proof can be made. 64 bytes a leaf.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    /// By level, the roots of the perfect subtrees of 2^level leaves.
    levels: Vec<Vec<Hash>>,
}

impl Tree {
    /// A tree without leaves.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many leaves it has.
    pub fn size(&self) -> u64 {
        self.levels.first().map_or(0, |leaves| leaves.len() as u64)
    }

    /// Adds a leaf, by its hash.
    pub fn push(&mut self, leaf: Hash) {
        let mut hash = leaf;
        for level in 0.. {
            if self.levels.len() == level {
                self.levels.push(Vec::new());
            }
            let nodes = &mut self.levels[level];
            nodes.push(hash);
            match nodes[..] {
                [.., left, right] if nodes.len().is_multiple_of(2) => hash = node(&left, &right),
                _ => break,
            }
        }
    }

    /// Forgets the leaves from `size` on.
    pub fn truncate(&mut self, size: u64) {
        for (level, nodes) in self.levels.iter_mut().enumerate() {
            nodes.truncate(usize::try_from(size >> level).unwrap_or(usize::MAX));
        }
        self.levels.retain(|nodes| !nodes.is_empty());
    }

    /// The root of the perfect subtree of 2^`level` leaves at `index` among its like, where all its leaves are there.
    pub fn node(&self, level: u32, index: u64) -> Option<Hash> {
        let nodes = self.levels.get(usize::try_from(level).ok()?)?;
        nodes.get(usize::try_from(index).ok()?).copied()
    }

    /// The root of its first `size` leaves, where it has them.
    pub fn root(&self, size: u64) -> Option<Hash> {
        root(size, |level, index| self.node(level, index).ok_or(())).ok()
    }

    /// The proof that leaf `index` is in the tree of the first `size` leaves, where it has them.
    pub fn inclusion(&self, index: u64, size: u64) -> Option<Vec<Hash>> {
        if index >= size || size > self.size() {
            return None;
        }
        inclusion(index, size, |l, i| self.node(l, i).ok_or(())).ok()
    }

    /// The proof that the tree of the first `new` leaves begins with that of the first `old`, where it has them.
    pub fn consistency(&self, old: u64, new: u64) -> Option<Vec<Hash>> {
        if old > new || new > self.size() {
            return None;
        }
        consistency(old, new, |l, i| self.node(l, i).ok_or(())).ok()
    }
}

/// The root of the first `size` leaves, of the nodes of a tree: `nodes(level, index)` is asked for perfect subtrees only.
///
/// # Errors
/// What `nodes` answers.
pub fn root<E>(size: u64, mut nodes: impl FnMut(u32, u64) -> Result<Hash, E>) -> Result<Hash, E> {
    span(0, size, &mut nodes)
}

/// The root over the leaves from `begin` on; `begin` is a multiple of the largest power of two that is not more than `count`.
fn span<E>(
    mut begin: u64,
    mut count: u64,
    nodes: &mut impl FnMut(u32, u64) -> Result<Hash, E>,
) -> Result<Hash, E> {
    let mut peaks = Vec::new();
    while count > 0 {
        let level = count.ilog2();
        peaks.push(nodes(level, begin >> level)?);
        begin += 1 << level;
        count -= 1 << level;
    }
    Ok(folded(&peaks))
}

/// The size of the left part of a tree of two leaves or more: the largest power of two below `count`.
fn split(count: u64) -> u64 {
    1 << (count - 1).ilog2()
}

/// The proof that leaf `index` is in the tree of the first `size` leaves, from its nodes as in [`root`]. Nothing is proved of a leaf
/// that isn't there: the proof is empty.
///
/// # Errors
/// What `nodes` answers.
pub fn inclusion<E>(
    index: u64,
    size: u64,
    mut nodes: impl FnMut(u32, u64) -> Result<Hash, E>,
) -> Result<Vec<Hash>, E> {
    let mut proof = Vec::new();
    let (mut begin, mut count) = (0, size);
    while count > 1 && index < size {
        let left = split(count);
        if index < begin + left {
            proof.push(span(begin + left, count - left, &mut nodes)?);
            count = left;
        } else {
            proof.push(span(begin, left, &mut nodes)?);
            begin += left;
            count -= left;
        }
    }
    proof.reverse();
    Ok(proof)
}

/// The proof that the tree of the first `new` leaves begins with that of the first `old`, from its nodes as in [`root`]. Nothing is
/// proved of sizes that allow none: the proof is empty.
///
/// # Errors
/// What `nodes` answers.
pub fn consistency<E>(
    old: u64,
    new: u64,
    mut nodes: impl FnMut(u32, u64) -> Result<Hash, E>,
) -> Result<Vec<Hash>, E> {
    let mut proof = Vec::new();
    if old == 0 || old >= new {
        return Ok(proof);
    }
    let (mut begin, mut count) = (0, new);
    // Both trees have the same nodes below where the old one ends; its own root need not be in the proof, others do.
    while begin + count != old {
        let left = split(count);
        if old <= begin + left {
            proof.push(span(begin + left, count - left, &mut nodes)?);
            count = left;
        } else {
            proof.push(span(begin, left, &mut nodes)?);
            begin += left;
            count -= left;
        }
    }
    if begin > 0 {
        proof.push(span(begin, count, &mut nodes)?);
    }
    proof.reverse();
    Ok(proof)
}

/// Whether the proof shows that a leaf stands at `index` in the tree of this size and root.
///
/// # Errors
/// It does not.
pub fn check_inclusion(
    leaf: &Hash,
    index: u64,
    size: u64,
    root: &Hash,
    proof: &[Hash],
) -> Result<(), BadProof> {
    if index >= size {
        return Err(BadProof::NoSuchLeaf { index, size });
    }
    let mut climb = Climb::from(index, size - 1);
    let mut hash = *leaf;
    for beside in proof {
        hash = match climb.step().ok_or(BadProof::WrongLength(proof.len()))? {
            Side::Left => node(beside, &hash),
            Side::Right => node(&hash, beside),
        };
    }
    if !climb.is_at_root() {
        return Err(BadProof::WrongLength(proof.len()));
    }
    if hash != *root {
        return Err(BadProof::OtherRoot);
    }
    Ok(())
}

/// Whether the proof shows that the tree of size `new` begins with the tree of size `old`.
///
/// # Errors
/// It does not; also where `old` is 0, since every tree begins with nothing.
pub fn check_consistency(
    old: u64,
    old_root: &Hash,
    new: u64,
    new_root: &Hash,
    proof: &[Hash],
) -> Result<(), BadProof> {
    if old == 0 || old > new {
        return Err(BadProof::NoSuchExtension { old, new });
    }
    let wrong_length = BadProof::WrongLength(proof.len());
    if old == new {
        return match (proof, old_root == new_root) {
            ([], true) => Ok(()),
            ([], false) => Err(BadProof::OtherRoot),
            _ => Err(wrong_length),
        };
    }
    // The climb begins at the last perfect subtree of the old tree. Where that is the whole old tree, its root is known.
    let (first, rest) = match old.is_power_of_two() {
        true => (old_root, proof),
        false => proof.split_first().ok_or(wrong_length)?,
    };
    let level = (old - 1).trailing_ones();
    let mut climb = Climb::from(
        (old - 1).checked_shr(level).unwrap_or(0),
        (new - 1).checked_shr(level).unwrap_or(0),
    );
    let (mut old_hash, mut new_hash) = (*first, *first);
    for beside in rest {
        match climb.step().ok_or(wrong_length)? {
            Side::Left => {
                old_hash = node(beside, &old_hash);
                new_hash = node(beside, &new_hash);
            }
            Side::Right => new_hash = node(&new_hash, beside),
        }
    }
    if !climb.is_at_root() {
        return Err(wrong_length);
    }
    if old_hash != *old_root || new_hash != *new_root {
        return Err(BadProof::OtherRoot);
    }
    Ok(())
}

/// On which side of the way up a proof's next hash stands.
enum Side {
    Left,
    Right,
}

/// The way from a node up to the root: where the node is at its level, and where that level ends.
struct Climb {
    at: u64,
    last: u64,
}

impl Climb {
    fn from(at: u64, last: u64) -> Self {
        Self { at, last }
    }

    fn is_at_root(&self) -> bool {
        self.last == 0
    }

    /// One hash up; None beyond the root.
    fn step(&mut self) -> Option<Side> {
        if self.is_at_root() {
            return None;
        }
        let side = if self.at % 2 == 1 || self.at == self.last {
            // At the right edge, levels at which nothing stands to the left are passed over.
            let alone = self.at.trailing_zeros().min(63);
            self.at >>= alone;
            self.last >>= alone;
            Side::Left
        } else {
            Side::Right
        };
        self.at >>= 1;
        self.last >>= 1;
        Some(side)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Straight from RFC 6962, 2.1.
    fn naive_root(leaves: &[Hash]) -> Hash {
        match leaves {
            [] => empty_root(),
            [one] => *one,
            _ => {
                let (left, right) = leaves.split_at(split(leaves.len() as u64) as usize);
                node(&naive_root(left), &naive_root(right))
            }
        }
    }

    fn leaves(count: u64) -> Vec<Hash> {
        (0..count).map(|n| leaf(&n.to_be_bytes())).collect()
    }

    fn tree(leaves: &[Hash]) -> Tree {
        let mut tree = Tree::new();
        leaves.iter().for_each(|leaf| tree.push(*leaf));
        tree
    }

    #[test]
    fn the_published_roots_come_out() {
        let inputs: [&[u8]; 8] = [
            b"",
            b"\x00",
            b"\x10",
            b"\x20\x21",
            b"\x30\x31",
            b"\x40\x41\x42\x43",
            b"\x50\x51\x52\x53\x54\x55\x56\x57",
            b"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f",
        ];
        let roots = [
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
            "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
            "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
            "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
            "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
        ];
        let all: Vec<_> = inputs.map(leaf).into();
        let tree = tree(&all);
        let mut frontier = Frontier::new();
        for (size, root) in roots.iter().enumerate() {
            let root = fixed(root);
            assert_eq!(naive_root(&all[..size]), root, "{size}");
            assert_eq!(tree.root(size as u64), Some(root), "{size}");
            assert_eq!(frontier.root(), root, "{size}");
            if let Some(leaf) = all.get(size) {
                frontier.push(*leaf);
            }
        }
    }

    fn unhex(text: &str) -> Vec<u8> {
        (0..text.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
            .collect()
    }

    fn fixed(text: &str) -> Hash {
        unhex(text).try_into().unwrap()
    }

    /// A hash as the vectors give it. Some of the bad ones are short, and so can't even be said here; none at all is None.
    fn padded(text: &str) -> Option<Hash> {
        let mut hash = [0; 32];
        let bytes = unhex(text);
        hash[..bytes.len()].copy_from_slice(&bytes);
        (!bytes.is_empty()).then_some(hash)
    }

    /// The vectors published with transparency-dev/merkle, good and bad. A line: what, good or bad, two numbers, two hashes, the
    /// proof's hashes (each "." when empty), and which case it is.
    #[test]
    fn the_published_proofs_are_judged_as_they_should_be() {
        let mut good = 0;
        let all = include_str!("../tests/rfc6962.txt");
        for line in all.lines().filter(|line| !line.starts_with('#')) {
            let fields: Vec<_> = line.split(' ').collect();
            let [what, verdict, one, two, first, second, proof, case] = fields[..] else {
                panic!("{line}");
            };
            let (one, two) = (one.parse().unwrap(), two.parse().unwrap());
            let hash = |text: &str| padded(text.trim_matches('.'));
            let proof: Option<Vec<_>> = match proof {
                "-" => Some(Vec::new()),
                proof => proof.split(',').map(hash).collect(),
            };
            let holds = match (hash(first), hash(second), proof) {
                (Some(first), Some(second), Some(proof)) => match what {
                    "inclusion" => check_inclusion(&first, one, two, &second, &proof).is_ok(),
                    _ => check_consistency(one, &first, two, &second, &proof).is_ok(),
                },
                _ => false,
            };
            assert_eq!(holds, verdict == "good", "{what} {case}");
            good += usize::from(holds);
        }
        assert_eq!(good, 12);
    }

    #[test]
    fn every_proof_of_small_trees_is_made_and_holds() {
        let all = leaves(40);
        let tree = tree(&all);
        for size in 0..=all.len() {
            let root = naive_root(&all[..size]);
            let size = size as u64;
            assert_eq!(tree.root(size), Some(root));
            for index in 0..size {
                let proof = tree.inclusion(index, size).unwrap();
                let leaf = &all[index as usize];
                assert_eq!(check_inclusion(leaf, index, size, &root, &proof), Ok(()));
            }
            for old in 1..=size {
                let old_root = naive_root(&all[..old as usize]);
                let proof = tree.consistency(old, size).unwrap();
                let holds = check_consistency(old, &old_root, size, &root, &proof);
                assert_eq!(holds, Ok(()), "{old} {size}");
            }
        }
        assert_eq!(tree.root(41), None);
        assert_eq!(tree.inclusion(40, 41), None);
        assert_eq!(tree.inclusion(3, 3), None);
        assert_eq!(tree.consistency(4, 3), None);
    }

    #[test]
    fn a_tree_cut_back_goes_on_as_if_the_rest_had_never_been() {
        let all = leaves(50);
        for size in 0..50 {
            let mut cut = tree(&all);
            cut.truncate(size);
            assert_eq!(cut.size(), size);
            all[size as usize..].iter().for_each(|leaf| cut.push(*leaf));
            assert_eq!(cut.levels, tree(&all).levels);
        }
    }

    #[test]
    fn the_largest_sizes_are_no_trouble() {
        let hash = [7; 32];
        for proof in [vec![], vec![hash; 63], vec![hash; 64], vec![hash; 65]] {
            for size in [1, 2, 3, 1 << 63, (1 << 63) + 1, u64::MAX - 1, u64::MAX] {
                for at in [0, 1, 1 << 62, 1 << 63, u64::MAX - 1, u64::MAX] {
                    let _ = check_inclusion(&hash, at, size, &hash, &proof);
                    let _ = check_consistency(at, &hash, size, &hash, &proof);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn a_changed_inclusion_proof_is_refused(
            size in 1u64..600, at: u64, byte: usize, bit in 0u8..8, kind in 0..6,
        ) {
            let all = leaves(size);
            let tree = tree(&all);
            let index = at % size;
            let mut proof = tree.inclusion(index, size).unwrap();
            let (mut root, mut leaf) = (tree.root(size).unwrap(), all[index as usize]);
            let mut said = index;
            prop_assert_eq!(check_inclusion(&leaf, index, size, &root, &proof), Ok(()));
            match kind {
                0 if !proof.is_empty() => { let n = byte % proof.len(); proof[n][byte % 32] ^= 1 << bit; }
                1 => leaf[byte % 32] ^= 1 << bit,
                2 => root[byte % 32] ^= 1 << bit,
                3 if !proof.is_empty() => drop(proof.remove(byte % proof.len())),
                4 => proof.insert(byte % (proof.len() + 1), all[byte % all.len()]),
                5 if byte as u64 % (2 * size) != index => said = byte as u64 % (2 * size),
                _ => return Ok(()),
            }
            prop_assert!(check_inclusion(&leaf, said, size, &root, &proof).is_err());
        }

        #[test]
        fn a_changed_consistency_proof_is_refused(
            size in 2u64..600, at: u64, byte: usize, bit in 0u8..8, kind in 0..6,
        ) {
            let all = leaves(size);
            let tree = tree(&all);
            let old = 1 + at % (size - 1);
            let mut proof = tree.consistency(old, size).unwrap();
            let (mut old_root, mut root) = (tree.root(old).unwrap(), tree.root(size).unwrap());
            prop_assert_eq!(check_consistency(old, &old_root, size, &root, &proof), Ok(()));
            match kind {
                0 if !proof.is_empty() => { let n = byte % proof.len(); proof[n][byte % 32] ^= 1 << bit; }
                1 => old_root[byte % 32] ^= 1 << bit,
                2 => root[byte % 32] ^= 1 << bit,
                3 if !proof.is_empty() => drop(proof.remove(byte % proof.len())),
                4 => proof.insert(byte % (proof.len() + 1), all[byte % all.len()]),
                5 => std::mem::swap(&mut old_root, &mut root),
                _ => return Ok(()),
            }
            prop_assert!(check_consistency(old, &old_root, size, &root, &proof).is_err());
        }

        #[test]
        fn a_history_that_was_changed_is_extended_by_nothing(
            size in 2u64..300, at: u64, changed: u64,
        ) {
            let mut all = leaves(size);
            let old = 1 + at % (size - 1);
            let old_root = tree(&all).root(old).unwrap();
            all[(changed % old) as usize][0] ^= 1;
            let tree = tree(&all);
            let (root, proof) = (tree.root(size).unwrap(), tree.consistency(old, size).unwrap());
            prop_assert!(check_consistency(old, &old_root, size, &root, &proof).is_err());
        }
    }
}
