/*!
A tracer belongs to one thread, as the greenlets that it is told of.

```compile_fail,E0277
fn is_send<T: Send>() {}
is_send::<greenlet_core::Tracer>();
```

```compile_fail,E0277
fn is_sync<T: Sync>() {}
is_sync::<greenlet_core::Tracer>();
```
*/
