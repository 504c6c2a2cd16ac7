//! The search through all orders, of greenlets and of tasks that await.

mod executor;
mod explore;
