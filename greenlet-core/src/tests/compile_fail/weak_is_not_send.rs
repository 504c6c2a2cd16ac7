/*!
A weak handle does not leave its thread either: it could be upgraded there.

```compile_fail,E0277
# extern crate greenlet_core as greenlet;
fn is_send<T: Send>() {}
is_send::<greenlet::WeakGreenlet>();
```
*/
