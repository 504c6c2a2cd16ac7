/*!
The state of a greenlet can be read, not set.

```compile_fail,E0070
# extern crate greenlet_core as greenlet;
use greenlet::{Greenlet, State};

let child = Greenlet::new(|(): ()| Ok(()));
child.state() = State::Dead;
```
*/
// ST-4
