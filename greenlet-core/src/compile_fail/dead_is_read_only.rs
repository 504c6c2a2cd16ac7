/*!
The state of a greenlet can be read, not set.

```compile_fail,E0070
use greenlet_core::{Greenlet, State};

let child = Greenlet::new(|(): ()| Ok(()));
child.state() = State::Dead;
```
*/
// ST-4
