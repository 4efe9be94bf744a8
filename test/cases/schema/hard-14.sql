-- What PostgreSQL 14 and later know.
create type hard.frames as range (subtype = date, multirange_type_name = hard.many_frames);
create table hard.from_14 (
  id integer primary key,
  spans int4multirange default '{[1,3),[5,7)}' not null,
  own hard.many_frames,
  packed text compression pglz
);
create statistics hard.from_14_expressions on (lower(packed)), (id % 7) from hard.from_14;
create function hard.rows_of_14(first integer default 0) returns setof hard.from_14 language sql stable
  begin atomic
    select from_14.* from hard.from_14 where from_14.id >= first;
    select f.* from hard.from_14 f join hard.from_14 on f.id = from_14.id;
  end;
create function hard.one_of_14(hard.from_14) returns text language sql return ($1).packed || 'x';
create function hard.put_14(n integer) returns void language sql begin atomic
  insert into hard.from_14 (id) values (n) on conflict on constraint from_14_pkey do update set packed = from_14.packed || 'y';
  delete from hard.from_14 where from_14.id = n + 1;
end;
create procedure hard.clear_14() language sql begin atomic update hard.from_14 set packed = null; end;
create view hard.of_14 as select r.id, upper(r.packed) as one from hard.rows_of_14(3) r(id, spans, own, packed);
