/*!
A parent can be changed, not removed.

```compile_fail,E0308
use greenlet_core::Greenlet;

let child = Greenlet::new(|(): ()| Ok(()));
child.set_parent(None).unwrap();
```
*/
// PA-4, PA-5
