//! Single promises, each by itself.
