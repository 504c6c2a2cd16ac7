//! Transfers of control, compared with Python's greenlet.

mod programs;
