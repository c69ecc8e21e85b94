//! The error that all stores share. Each store's port is next to the data that it stores:
//! [`KeyStore`](crate::auth::KeyStore), [`WindowStore`](crate::rate_limit::WindowStore) and
//! [`StateStore`](crate::idempotency::StateStore).

/// Why a call to a store returned no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreError {
    /// The store could not be reached, or it refused the call temporarily. A write may or may not have
    /// taken effect.
    Unavailable(String),
    /// The store contains data that this function cannot have written, or refuses the call as
    /// invalid.
    Defect(String),
}
