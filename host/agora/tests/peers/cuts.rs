//! Stops at either host, and links that are cut.
