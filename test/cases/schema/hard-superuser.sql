-- What only a superuser may make.
create function hard.level_order(a hard.level, b hard.level) returns integer language sql immutable as
  $$ select case when a::text < b::text then -1 when a::text > b::text then 1 else 0 end $$;
create function hard.level_before(a hard.level, b hard.level) returns boolean language sql immutable as
  $$ select a::text < b::text $$;
create function hard.level_same(a hard.level, b hard.level) returns boolean language sql immutable as
  $$ select a::text = b::text $$;
create operator hard.<<< (leftarg = hard.level, rightarg = hard.level, function = hard.level_before);
create operator hard.==== (leftarg = hard.level, rightarg = hard.level, function = hard.level_same);
create operator family hard.levels using btree;
create operator class hard.level_ops for type hard.level using btree family hard.levels as
  operator 1 hard.<<<, operator 3 hard.====, function 1 hard.level_order(hard.level, hard.level);
comment on operator class hard.level_ops using btree is 'by name';
create index kinds_by_class on hard.kinds (level hard.level_ops);
create cast (text as hard.level) with inout as assignment;
create function hard.on_ddl() returns event_trigger language plpgsql as $$ begin end $$;
create event trigger hard_ddl on ddl_command_end when tag in ('DROP TABLE') execute function hard.on_ddl();
create publication hard_publication for table hard.rings_a, hard.rings_b with (publish = 'insert');
create foreign data wrapper hard_wrapper;
create server hard_server foreign data wrapper hard_wrapper options (host 'elsewhere');
create user mapping for public server hard_server options (password 'hidden_word');
create foreign table hard.foreign_rows (id integer, v text) server hard_server options (name 'rows');
create view hard.of_foreign as select id from hard.foreign_rows;
create type hard.base;
create function hard.base_in(cstring) returns hard.base language internal immutable strict as 'textin';
create function hard.base_out(hard.base) returns cstring language internal immutable strict as 'textout';
create type hard.base (input = hard.base_in, output = hard.base_out, internallength = variable, alignment = int4,
  storage = extended, category = 'S', default = 'made');
comment on type hard.base is 'a base type';
create type hard.only_shell;
create table hard.of_base (id integer primary key, value hard.base default 'new', list hard.base[]);
create cast (hard.base as text) without function as implicit;
