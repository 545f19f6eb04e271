//! Lines for the host's log, which the operator reads under the agent's name.
//!
//! `println!` and `eprintln!` reach the same place; these name the intent. A host keeps lines up to 4 KiB and drops what comes
//! faster than it will keep.

/// Logs a line at the host's `info` level.
#[macro_export]
macro_rules! info {
    ($($arg:tt)*) => { ::std::println!($($arg)*) };
}

/// Logs a line at the host's `warn` level.
#[macro_export]
macro_rules! warn {
    ($($arg:tt)*) => { ::std::eprintln!($($arg)*) };
}
