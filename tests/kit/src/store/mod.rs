//! The sample store: how it is made, converted to other layouts, and compared.

pub mod builder;
pub mod devicemapper;
pub mod fixture;
pub mod layer_tar;
pub mod layouts;
pub mod listing;
pub mod sample;
pub mod thin_pool;
