// 使用示例
const generator = new SuChuangImageGenerator(YOUR_JWT_TOKEN);
// 文生图
generator.generateImage("一只可爱的柴犬", "1:1")
.then(taskNo => {
console.log(`任务已提交: ${taskNo}`);
return generator.waitForCompletion(taskNo);
})
.then(imageUrl => {
console.log(`图片生成完成: ${imageUrl}`);
})
.catch(error => {
console.error(`生成失败: ${error.message}`);
});
// 图生图
generator.transformImage(
"转换为卡通Q版风格",
"https://example.com/photo.jpg",
"1:1"
).then(taskNo => {
console.log(`任务已提交: ${taskNo}`);
return generator.waitForCompletion(taskNo);
}).then(imageUrl => {
console.log(`图片转换完成: ${imageUrl}`);
});
