;; Counts the words of a text. All that it knows is in its memory: a hash table of words that it was
;; taught, which is the image that requests start from.
;;
;;   0x000000  the address after the last word's text
;;   0x010000  input, up to 960 KiB
;;   0x100000  2^19 slots: hash, address and length of the word, how often it was counted
;;   0x900000  the words' text, up to 7 MiB
;;   16 MiB    answers, in memory that each request grows by: address of the word, count
(module
  (memory (export "memory") 256 1024)

  ;; FNV-1a, stirred once more.
  (func $hash (param $at i32) (param $end i32) (result i32)
    (local $hash i32)
    (local.set $hash (i32.const 0x811c9dc5))
    (loop $bytes
      (local.set $hash (i32.mul
        (i32.xor (local.get $hash) (i32.load8_u (local.get $at)))
        (i32.const 0x01000193)))
      (local.set $at (i32.add (local.get $at) (i32.const 1)))
      (br_if $bytes (i32.lt_u (local.get $at) (local.get $end))))
    (i32.xor (local.get $hash) (i32.shr_u (local.get $hash) (i32.const 15))))

  (func $equal (param $a i32) (param $b i32) (param $len i32) (result i32)
    (loop $bytes
      (if (i32.ne (i32.load8_u (local.get $a)) (i32.load8_u (local.get $b)))
        (then (return (i32.const 0))))
      (local.set $a (i32.add (local.get $a) (i32.const 1)))
      (local.set $b (i32.add (local.get $b) (i32.const 1)))
      (local.set $len (i32.sub (local.get $len) (i32.const 1)))
      (br_if $bytes (local.get $len)))
    (i32.const 1))

  ;; The slot of a word, or the empty one where it would go.
  (func $find (param $at i32) (param $end i32) (param $hash i32) (result i32)
    (local $slot i32)
    (local $word i32)
    (local.set $slot (local.get $hash))
    (loop $slots (result i32)
      (local.set $slot (i32.and (local.get $slot) (i32.const 0x7ffff)))
      (local.set $word (i32.add (i32.const 0x100000) (i32.shl (local.get $slot) (i32.const 4))))
      (if (i32.eqz (i32.load offset=4 (local.get $word)))
        (then (return (local.get $word))))
      (if (i32.and
            (i32.eq (i32.load (local.get $word)) (local.get $hash))
            (i32.eq (i32.load offset=8 (local.get $word)) (i32.sub (local.get $end) (local.get $at))))
        (then
          (if (call $equal
                (i32.load offset=4 (local.get $word))
                (local.get $at)
                (i32.sub (local.get $end) (local.get $at)))
            (then (return (local.get $word))))))
      (local.set $slot (i32.add (local.get $slot) (i32.const 1)))
      (br $slots)))

  ;; From `at` on, the first byte that is blank as asked, or the end.
  (func $skip (param $at i32) (param $end i32) (param $blank i32) (result i32)
    (block $done
      (loop $bytes
        (br_if $done (i32.ge_u (local.get $at) (local.get $end)))
        (br_if $done (i32.eq
          (i32.le_u (i32.load8_u (local.get $at)) (i32.const 0x20))
          (local.get $blank)))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (br $bytes)))
    (local.get $at))

  ;; Teaches it the words of a text; tells how many were new.
  (func (export "learn") (param $at i32) (param $len i32) (result i32)
    (local $end i32) (local $next i32) (local $hash i32) (local $word i32) (local $text i32)
    (local $new i32)
    (local.set $end (i32.add (local.get $at) (local.get $len)))
    (local.set $text (i32.load (i32.const 0)))
    (if (i32.eqz (local.get $text))
      (then (local.set $text (i32.const 0x900000))))
    (block $done
      (loop $words
        (local.set $at (call $skip (local.get $at) (local.get $end) (i32.const 0)))
        (br_if $done (i32.eq (local.get $at) (local.get $end)))
        (local.set $next (call $skip (local.get $at) (local.get $end) (i32.const 1)))
        (local.set $hash (call $hash (local.get $at) (local.get $next)))
        (local.set $word (call $find (local.get $at) (local.get $next) (local.get $hash)))
        (if (i32.eqz (i32.load offset=4 (local.get $word)))
          (then
            (local.set $len (i32.sub (local.get $next) (local.get $at)))
            (memory.copy (local.get $text) (local.get $at) (local.get $len))
            (i32.store (local.get $word) (local.get $hash))
            (i32.store offset=4 (local.get $word) (local.get $text))
            (i32.store offset=8 (local.get $word) (local.get $len))
            (local.set $text (i32.add (local.get $text) (local.get $len)))
            (local.set $new (i32.add (local.get $new) (i32.const 1)))))
        (local.set $at (local.get $next))
        (br $words)))
    (i32.store (i32.const 0) (local.get $text))
    (local.get $new))

  ;; Counts the words of a text that it knows; tells where the answers are, how many, and how many
  ;; words it does not know.
  (func (export "count") (param $at i32) (param $len i32) (result i32 i32 i32)
    (local $end i32) (local $next i32) (local $word i32) (local $count i32)
    (local $answers i32) (local $answer i32) (local $unknown i32)
    (local.set $end (i32.add (local.get $at) (local.get $len)))
    ;; An answer is eight bytes, a word and the blank after it are at least two.
    (local.set $answers (memory.grow (i32.add
      (i32.shr_u (local.get $len) (i32.const 14))
      (i32.const 1))))
    (if (i32.eq (local.get $answers) (i32.const -1))
      (then (unreachable)))
    (local.set $answers (i32.shl (local.get $answers) (i32.const 16)))
    (local.set $answer (local.get $answers))
    (block $done
      (loop $words
        (local.set $at (call $skip (local.get $at) (local.get $end) (i32.const 0)))
        (br_if $done (i32.eq (local.get $at) (local.get $end)))
        (local.set $next (call $skip (local.get $at) (local.get $end) (i32.const 1)))
        (local.set $word (call $find
          (local.get $at)
          (local.get $next)
          (call $hash (local.get $at) (local.get $next))))
        (if (i32.load offset=4 (local.get $word))
          (then
            (local.set $count (i32.add (i32.load offset=12 (local.get $word)) (i32.const 1)))
            (i32.store offset=12 (local.get $word) (local.get $count))
            (i32.store (local.get $answer) (i32.load offset=4 (local.get $word)))
            (i32.store offset=4 (local.get $answer) (local.get $count))
            (local.set $answer (i32.add (local.get $answer) (i32.const 8))))
          (else
            (local.set $unknown (i32.add (local.get $unknown) (i32.const 1)))))
        (local.set $at (local.get $next))
        (br $words)))
    (local.get $answers)
    (i32.shr_u (i32.sub (local.get $answer) (local.get $answers)) (i32.const 3))
    (local.get $unknown))

  ;; What a guest that means no good would do.
  (func (export "load") (param i32) (result i32) (i32.load (local.get 0)))
  (func (export "load_byte") (param i32) (result i32) (i32.load8_u (local.get 0)))
  (func (export "load_at_64M") (param i32) (result i32)
    (i32.load offset=0x03fffffc (local.get 0)))
  (func (export "load_far") (param i32) (result i32)
    (i32.load offset=0xfffffff0 (local.get 0)))
  (func (export "store") (param i32) (result i32)
    (i64.store (local.get 0) (i64.const -1)) (i32.const 0))
  (func (export "fill") (param i32) (result i32)
    (memory.fill (local.get 0) (i32.const 1) (i32.const 0x2000)) (i32.const 0))
  (func (export "copy") (param i32) (result i32)
    (memory.copy (i32.const 0x10000) (local.get 0) (i32.const 0x2000)) (i32.const 0))
  (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0))))
