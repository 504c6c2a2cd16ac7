/*!
A handle does not leave its thread.

```compile_fail,E0277
fn is_send<T: Send>() {}
is_send::<greenlet_core::Greenlet>();
```

The errors of a switch do, whatever value they carry:

```
fn is_send<T: Send + Sync>() {}
is_send::<anyhow::Error>();
is_send::<greenlet_core::TypeMismatch>();
is_send::<greenlet_core::GreenletExit>();
```
*/
// PA-9
