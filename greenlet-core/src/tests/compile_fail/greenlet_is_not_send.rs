/*!
A handle does not leave its thread.

```compile_fail,E0277
# extern crate greenlet_core as greenlet;
fn is_send<T: Send>() {}
is_send::<greenlet::Greenlet>();
```

The errors of a switch do, whatever value they carry:

```
# extern crate greenlet_core as greenlet;
fn is_send<T: Send + Sync>() {}
is_send::<anyhow::Error>();
is_send::<greenlet::TypeMismatch>();
is_send::<greenlet::GreenletExit>();
```
*/
// PA-9
