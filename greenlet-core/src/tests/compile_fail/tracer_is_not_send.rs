/*!
A tracer belongs to one thread, as the greenlets that it is told of.

```compile_fail,E0277
# extern crate greenlet_core as greenlet;
fn is_send<T: Send>() {}
is_send::<greenlet::Tracer>();
```

```compile_fail,E0277
# extern crate greenlet_core as greenlet;
fn is_sync<T: Sync>() {}
is_sync::<greenlet::Tracer>();
```
*/
