CREATE TABLE `checkpoint` (
	`task_id` text NOT NULL,
	`key` text NOT NULL,
	`value` text NOT NULL,
	PRIMARY KEY(`task_id`, `key`),
	FOREIGN KEY (`task_id`) REFERENCES `task`(`id`) ON UPDATE no action ON DELETE cascade
);
--> statement-breakpoint
CREATE TABLE `journal` (
	`seq` integer PRIMARY KEY AUTOINCREMENT NOT NULL,
	`task_id` text NOT NULL,
	`event` text NOT NULL,
	`state` text NOT NULL,
	`error` text,
	`at` text NOT NULL,
	FOREIGN KEY (`task_id`) REFERENCES `task`(`id`) ON UPDATE no action ON DELETE cascade
);
--> statement-breakpoint
CREATE INDEX `journal_task` ON `journal` (`task_id`,`seq`);--> statement-breakpoint
CREATE TABLE `secret` (
	`task_id` text NOT NULL,
	`role` text NOT NULL,
	`sealed` blob NOT NULL,
	PRIMARY KEY(`task_id`, `role`),
	FOREIGN KEY (`task_id`) REFERENCES `task`(`id`) ON UPDATE no action ON DELETE cascade
);
--> statement-breakpoint
CREATE TABLE `table_progress` (
	`task_id` text NOT NULL,
	`position` integer NOT NULL,
	`name` text NOT NULL,
	`figures` text NOT NULL,
	PRIMARY KEY(`task_id`, `name`),
	FOREIGN KEY (`task_id`) REFERENCES `task`(`id`) ON UPDATE no action ON DELETE cascade
);
--> statement-breakpoint
CREATE TABLE `task` (
	`id` text PRIMARY KEY NOT NULL,
	`incarnation` text NOT NULL,
	`body_hash` text NOT NULL,
	`spec` text NOT NULL,
	`state` text NOT NULL,
	`machine_version` integer NOT NULL,
	`actor_snapshot` text NOT NULL,
	`rev` integer DEFAULT 0 NOT NULL,
	`cleanup_pending` integer DEFAULT false NOT NULL,
	`crash` text,
	`created_at` text NOT NULL,
	`updated_at` text NOT NULL
);
--> statement-breakpoint
CREATE INDEX `task_state` ON `task` (`state`,`updated_at`);--> statement-breakpoint
CREATE INDEX `task_created` ON `task` (`created_at`,`id`);