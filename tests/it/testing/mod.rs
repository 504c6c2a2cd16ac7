//! The search through all orders.

mod explore;
