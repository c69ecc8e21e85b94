//! The fuzz targets of the backfill. Each takes arbitrary bytes, and panics if the backfill reads them wrongly.
//!
//! ```text
//! readers, times   one target each
//!   expand         long inputs, from short ones
//! ```

pub mod readers;
pub mod times;

mod expand;
