-- A film rental like Pagila, the sample database of PostgreSQL's documentation projects, written anew: an enum and a domain,
-- a tsvector kept by a trigger, payments partitioned by month, an aggregate, functions, views with it, triggers on everything.
create schema films;
create type films.mpaa_rating as enum ('G', 'PG', 'PG-13', 'R', 'NC-17');
create domain films.year as integer constraint year_check check (value >= 1901 and value <= 2155);
create function films._group_concat(text, text) returns text language sql immutable as $_$
  select case when $2 is null then $1 when $1 is null then $2 else $1 || ', ' || $2 end
$_$;
create aggregate films.group_concat(text) (sfunc = films._group_concat, stype = text);
create function films.last_updated() returns trigger language plpgsql as $$
begin
  new.last_update = current_timestamp;
  return new;
end $$;

create table films.country (country_id serial primary key, country text not null,
  last_update timestamptz not null default now());
create table films.city (city_id serial primary key, city text not null,
  country_id integer not null references films.country on update cascade on delete restrict,
  last_update timestamptz not null default now());
create table films.address (address_id serial primary key, address text not null, address2 text, district text not null,
  city_id integer not null references films.city on update cascade on delete restrict, postal_code text,
  phone text not null, last_update timestamptz not null default now());
create table films.language (language_id serial primary key, name character(20) not null,
  last_update timestamptz not null default now());
create table films.actor (actor_id serial primary key, first_name text not null, last_name text not null,
  last_update timestamptz not null default now());
create table films.category (category_id serial primary key, name text not null,
  last_update timestamptz not null default now());
create table films.film (
  film_id serial primary key, title text not null, description text, release_year films.year,
  language_id integer not null references films.language on update cascade on delete restrict,
  original_language_id integer references films.language on update cascade on delete restrict,
  rental_duration smallint not null default 3, rental_rate numeric(4,2) not null default 4.99, length smallint,
  replacement_cost numeric(5,2) not null default 19.99, rating films.mpaa_rating default 'G',
  last_update timestamptz not null default now(), special_features text[], fulltext tsvector not null
);
create table films.film_actor (actor_id integer not null references films.actor on update cascade on delete restrict,
  film_id integer not null references films.film on update cascade on delete restrict,
  last_update timestamptz not null default now(), primary key (actor_id, film_id));
create table films.film_category (film_id integer not null references films.film on update cascade on delete restrict,
  category_id integer not null references films.category on update cascade on delete restrict,
  last_update timestamptz not null default now(), primary key (film_id, category_id));
-- stores have a manager among the staff, who have a store
create table films.store (store_id serial primary key, manager_staff_id integer not null unique,
  address_id integer not null references films.address on update cascade on delete restrict,
  last_update timestamptz not null default now());
create table films.staff (staff_id serial primary key, first_name text not null, last_name text not null,
  address_id integer not null references films.address on update cascade on delete restrict, email text,
  store_id integer not null references films.store, active boolean not null default true, username text not null,
  password text, last_update timestamptz not null default now(), picture bytea);
alter table films.store add constraint store_manager_staff_id_fkey foreign key (manager_staff_id)
  references films.staff on update cascade on delete restrict deferrable initially deferred;
create table films.customer (customer_id serial primary key,
  store_id integer not null references films.store on update cascade on delete restrict, first_name text not null,
  last_name text not null, email text, address_id integer not null references films.address, activebool boolean not null
  default true, create_date date not null default current_date, last_update timestamptz default now(), active integer);
create table films.inventory (inventory_id serial primary key,
  film_id integer not null references films.film on update cascade on delete restrict,
  store_id integer not null references films.store on update cascade on delete restrict,
  last_update timestamptz not null default now());
create table films.rental (rental_id serial primary key, rental_date timestamptz not null,
  inventory_id integer not null references films.inventory on update cascade on delete restrict,
  customer_id integer not null references films.customer on update cascade on delete restrict,
  return_date timestamptz, staff_id integer not null references films.staff on update cascade on delete restrict,
  last_update timestamptz not null default now());
create table films.payment (payment_id serial, customer_id integer not null, staff_id integer not null,
  rental_id integer not null, amount numeric(5,2) not null, payment_date timestamptz not null,
  primary key (payment_date, payment_id)) partition by range (payment_date);
do $$ begin
  for month in 1..7 loop
    execute format('create table films.payment_p2022_%s partition of films.payment for values from (%L) to (%L)',
      to_char(month, 'fm00'), make_date(2022, month, 1) || ' 00:00+00', make_date(2022, month + 1, 1) || ' 00:00+00');
    execute format('create index idx_fk_payment_p2022_%s_customer_id on films.payment_p2022_%1$s (customer_id)', to_char(month, 'fm00'));
    execute format('alter table films.payment_p2022_%s add constraint payment_p2022_%1$s_customer_id_fkey
      foreign key (customer_id) references films.customer,
      add constraint payment_p2022_%1$s_rental_id_fkey foreign key (rental_id) references films.rental', to_char(month, 'fm00'));
  end loop;
end $$;
create index film_fulltext_idx on films.film using gist (fulltext);
create index idx_title on films.film (title);
create index idx_actor_last_name on films.actor (last_name);
create unique index idx_unq_rental on films.rental (rental_date, inventory_id, customer_id);

do $$ declare name text; begin
  foreach name in array array['country', 'city', 'address', 'language', 'actor', 'category', 'film', 'film_actor',
      'film_category', 'store', 'staff', 'customer', 'inventory', 'rental'] loop
    execute format('create trigger last_updated before update on films.%I for each row execute function films.last_updated()', name);
  end loop;
end $$;
create trigger film_fulltext_trigger before insert or update on films.film for each row
  execute function tsvector_update_trigger('fulltext', 'pg_catalog.english', 'title', 'description');

create function films.inventory_in_stock(p_inventory_id integer) returns boolean language plpgsql as $$
declare v_out integer;
begin
  select count(rental_id) into v_out from films.inventory left join films.rental using (inventory_id)
    where inventory.inventory_id = p_inventory_id and rental.return_date is null;
  return v_out = 0;
end $$;
create function films.film_in_stock(p_film_id integer, p_store_id integer, out p_film_count integer) returns setof integer
  language sql as $_$
    select inventory_id from films.inventory where film_id = $1 and store_id = $2 and films.inventory_in_stock(inventory_id);
$_$;
create function films.last_day(timestamptz) returns date language sql immutable strict as $_$
  select (date_trunc('month', $1 at time zone 'UTC') + interval '1 month - 1 day')::date
$_$;
create function films.rewards_report(min_purchases integer, min_amount numeric) returns setof films.customer
  language plpgsql security definer as $_$
declare rr record;
begin
  for rr in execute 'select c.* from films.customer c where c.customer_id <= $1' using min_purchases loop
    return next rr;
  end loop;
end $_$;

create view films.actor_info as
  select a.actor_id, a.first_name, a.last_name, films.group_concat(distinct c.name || ': ' ||
    (select films.group_concat(f.title order by f.title) from films.film f
       join films.film_category fc on f.film_id = fc.film_id join films.film_actor fa on f.film_id = fa.film_id
      where fc.category_id = c.category_id and fa.actor_id = a.actor_id)) as film_info
  from films.actor a left join films.film_actor fa on a.actor_id = fa.actor_id
    left join films.film_category fc on fa.film_id = fc.film_id left join films.category c on fc.category_id = c.category_id
  group by a.actor_id, a.first_name, a.last_name;
create view films.customer_list as
  select cu.customer_id as id, (cu.first_name || ' ') || cu.last_name as name, a.address, a.postal_code as "zip code",
    a.phone, city.city, country.country, case when cu.activebool then 'active' else '' end as notes, cu.store_id as sid
  from films.customer cu join films.address a on cu.address_id = a.address_id join films.city on a.city_id = city.city_id
    join films.country on city.country_id = country.country_id;
create view films.film_list as
  select film.film_id as fid, film.title, film.description, category.name as category, film.rental_rate as price,
    film.length, film.rating, films.group_concat(actor.first_name || ' ' || actor.last_name order by actor.actor_id) as actors
  from films.category left join films.film_category on category.category_id = film_category.category_id
    left join films.film on film_category.film_id = film.film_id join films.film_actor on film.film_id = film_actor.film_id
    join films.actor on film_actor.actor_id = actor.actor_id
  group by film.film_id, film.title, film.description, category.name, film.rental_rate, film.length, film.rating;
create view films.sales_by_store as
  select (c.city || ',') || cy.country as store, (m.first_name || ' ') || m.last_name as manager, sum(p.amount) as total_sales
  from films.payment p join films.rental r on p.rental_id = r.rental_id join films.inventory i on r.inventory_id = i.inventory_id
    join films.store s on i.store_id = s.store_id join films.address a on s.address_id = a.address_id
    join films.city c on a.city_id = c.city_id join films.country cy on c.country_id = cy.country_id
    join films.staff m on s.manager_staff_id = m.staff_id
  group by cy.country, c.city, s.store_id, m.first_name, m.last_name order by cy.country, c.city;
create materialized view films.rental_by_category as
  select c.name as category, sum(p.amount) as total_sales
  from films.payment p join films.rental r on p.rental_id = r.rental_id join films.inventory i on r.inventory_id = i.inventory_id
    join films.film f on i.film_id = f.film_id join films.film_category fc on f.film_id = fc.film_id
    join films.category c on fc.category_id = c.category_id
  group by c.name order by sum(p.amount) desc with no data;
create unique index rental_category on films.rental_by_category (category);

insert into films.country (country) select 'Country ' || n from generate_series(1, 20) n;
insert into films.city (city, country_id) select 'City ' || n, 1 + n % 20 from generate_series(1, 60) n;
insert into films.address (address, district, city_id, phone) select n || ' Street', '', 1 + n % 60, 1000 + n from generate_series(1, 100) n;
insert into films.language (name) values ('English'), ('Italian'), ('日本語');
insert into films.actor (first_name, last_name) select 'First' || n, 'Last' || n % 17 from generate_series(1, 80) n;
insert into films.category (name) select 'Category ' || n from generate_series(1, 16) n;
insert into films.film (title, description, release_year, language_id, original_language_id, length, rating, special_features)
  select 'ACADEMY ' || n, 'A drama of ' || n || ' robots who must fight', 1990 + n % 30, 1 + n % 3, nullif(n % 4, 0),
    60 + n % 90, (enum_range(null::films.mpaa_rating))[1 + n % 5], array['Trailers', 'Deleted "Scenes"'] from generate_series(1, 300) n;
insert into films.film_actor (actor_id, film_id) select a, f from generate_series(1, 80) a, generate_series(1, 300) f where (a * f) % 23 = 1;
insert into films.film_category (film_id, category_id) select n, 1 + n % 16 from generate_series(1, 300) n;
begin;
insert into films.store (manager_staff_id, address_id) values (1, 1), (2, 2);
insert into films.staff (first_name, last_name, address_id, store_id, username, picture)
  values ('Mike', 'H', 3, 1, 'Mike', '\x89504e470d0a'), ('Jon', 'S', 4, 2, 'Jon', null);
commit;
insert into films.customer (store_id, first_name, last_name, address_id, active) select 1 + n % 2, 'C' || n, 'L' || n, 1 + n % 100, n % 2 from generate_series(1, 120) n;
insert into films.inventory (film_id, store_id) select 1 + n % 300, 1 + n % 2 from generate_series(1, 600) n;
insert into films.rental (rental_date, inventory_id, customer_id, return_date, staff_id)
  select '2022-01-01Z'::timestamptz + n * interval '150 minutes', 1 + n % 600, 1 + n % 120,
    case when n % 9 > 0 then '2022-01-04Z'::timestamptz + n * interval '150 minutes' end, 1 + n % 2 from generate_series(1, 1900) n;
insert into films.payment (customer_id, staff_id, rental_id, amount, payment_date)
  select customer_id, staff_id, rental_id, 0.99 + rental_id % 7, rental_date + interval '1 hour' from films.rental;
refresh materialized view films.rental_by_category;
