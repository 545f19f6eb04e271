use std::sync::{OnceLock, RwLock};
pub(crate) fn alone() -> &'static RwLock<()> {
    static ALONE: OnceLock<RwLock<()>> = OnceLock::new();
    ALONE.get_or_init(RwLock::default)
}
