//! The black-box tests of the project: one binary, one module for each question.

mod support;

mod bridge;
mod generator;
mod record;
mod smoke;
