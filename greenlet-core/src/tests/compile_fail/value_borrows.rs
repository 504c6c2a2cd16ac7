/*!
What a switch carries does not borrow: its receiver may keep it for ever.

```compile_fail,E0597
# extern crate greenlet_core as greenlet;
use greenlet::Greenlet;

let child = Greenlet::new(|first: &'static str| Ok(first.len()));
let text = String::from("text");
child.switch::<usize>(text.as_str()).unwrap();
```

Nor does what it returns:

```compile_fail,E0310
# extern crate greenlet_core as greenlet;
fn ask<T>(greenlet: &greenlet::Greenlet) -> T {
    greenlet.switch::<T>(()).unwrap()
}
```

Send what owns its text:

```
# extern crate greenlet_core as greenlet;
use greenlet::Greenlet;

let child = Greenlet::new(|first: String| Ok(first.len()));
assert_eq!(child.switch::<usize>(String::from("text")).unwrap(), 4);
```
*/
