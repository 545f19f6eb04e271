//! Which cryptography TLS uses. rustls chooses by itself only where one is compiled in, and panics at the first connection
//! where two are; another crate of the same program may well bring the other.

/// Settles on `ring`, unless the program has settled on something already.
pub(super) fn settle() {
    let _ = async_nats::rustls::crypto::ring::default_provider().install_default();
}

#[cfg(test)]
mod tests {
    use async_nats::rustls::crypto::CryptoProvider;

    use crate::JetStreamOptions;

    #[tokio::test]
    async fn before_the_first_connection_it_is_settled() {
        let options = JetStreamOptions::default();
        options
            .connect_options("log")
            .await
            .expect("no files are read");
        assert!(CryptoProvider::get_default().is_some());
    }
}
