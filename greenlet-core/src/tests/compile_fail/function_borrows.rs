/*!
A greenlet's function owns what it uses: the greenlet may outlive the frame that made it.

```compile_fail,E0373
# extern crate greenlet_core as greenlet;
use greenlet::Greenlet;

let number = 1;
let child = Greenlet::new(|(): ()| Ok(number + 1));
```

```compile_fail,E0597
# extern crate greenlet_core as greenlet;
use greenlet::Greenlet;

let text = String::from("text");
let borrowed = &text;
let child = Greenlet::new(move |(): ()| Ok(borrowed.len()));
```

Move it in:

```
# extern crate greenlet_core as greenlet;
use greenlet::Greenlet;

let number = 1;
let child = Greenlet::new(move |(): ()| Ok(number + 1));
assert_eq!(child.switch::<i32>(()).unwrap(), 2);
```
*/
