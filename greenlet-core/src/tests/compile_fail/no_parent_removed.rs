/*!
A parent can be changed, not removed.

```compile_fail,E0308
# extern crate greenlet_core as greenlet;
use greenlet::Greenlet;

let child = Greenlet::new(|(): ()| Ok(()));
child.set_parent(None).unwrap();
```
*/
// PA-4, PA-5
