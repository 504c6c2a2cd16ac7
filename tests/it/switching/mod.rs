//! Control goes from greenlet to greenlet as it does on Python.

mod programs;
