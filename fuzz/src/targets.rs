//! The fuzz targets. Each takes arbitrary bytes, and panics if the service breaks docs/contract.md.
//!
//! ```text
//! gateway_event, headers, batch, bulk, packing, ordered   one target each
//!   generate    batches of valid events, from random bytes
//!   expand      long inputs, from short ones
//!   function    the function over ports in memory, and its responses
//!   messages    batch → messages → events
//!   reference   the rules of docs/contract.md, on a slow JSON reader
//!     tape      that reader
//!   ports       the tables and the queue in memory
//!   checks      which checks run for an input
//!   meter       bounds on allocations
//! ```

pub mod batch;
pub mod bulk;
pub mod checks;
pub mod expand;
pub mod gateway_event;
pub mod headers;
pub mod meter;
pub mod ordered;
pub mod packing;

mod function;
mod generate;
mod messages;
mod ports;
mod reference;
mod tape;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;
